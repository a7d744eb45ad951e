"""The format of meshes and point clouds: configuration that does not import trimesh."""

import math
from typing import ClassVar, Literal

from perceiver_model.config_checks import Count, PositiveNumber, WholeNumber, config_dataclass
from pipeline.media.format import MediaFormat

NUM_DIMS = 3


@config_dataclass
class PointsFourier:
    """Fourier features of every point's own coordinates, stored beside the points.

    Attributes:
        num_bands: The number of frequencies for each coordinate.
        max_resolution: The highest frequency is half of it. None takes the default of the adapter
            `points`, `sqrt(num_points / π)`, which matches the spacing of the points.
    """

    num_bands: Count = 64
    max_resolution: PositiveNumber | None = None

    @property
    def channels(self) -> int:
        """The number of channels of a point's features."""
        return NUM_DIMS * (2 * self.num_bands + 1)

    def resolution(self, num_points: int) -> float:
        """Return `max_resolution`, or its default for clouds of `num_points` points.

        The default equals `default_max_resolution` of `perceiver_model.adapters.points_config`.
        """
        if self.max_resolution is not None:
            return self.max_resolution
        return max(2.0, math.sqrt(num_points / math.pi))


@config_dataclass
class PointsFormat(MediaFormat):
    """Point clouds of up to `num_points` points, stored as float16.

    Attributes:
        num_points: The number of points drawn from a mesh. Clouds with fewer points are stored as
            they are and masked.
        sample: `surface` draws points from the faces of meshes, uniformly by area. `points` draws
            from the points of a cloud or the vertices of a mesh. `auto` means `surface` for files
            that have faces and `points` for files that have none.
        seed: The seed of the draw. The draw also depends on the file's content.
        unit_cube: Whether to move every cloud to zero mean and scale it into the unit cube, with
            the largest coordinate at ±1, before it is stored. Otherwise the coordinates are stored
            as they are. Then clouds that float16 cannot hold to 1/1000 of their size are refused.
        fourier: Whether to also store the points' Fourier features, and with which frequencies;
            None stores none.
        max_faces: Meshes with more faces are refused.
        max_points: Meshes and clouds with more points are refused.
    """

    modality: ClassVar[str] = "points"

    num_points: Count
    sample: Literal["auto", "surface", "points"] = "auto"
    seed: WholeNumber = 0
    unit_cube: bool = True
    fourier: PointsFourier | None = None
    max_faces: Count = 5_000_000
    max_points: Count = 20_000_000

    def __post_init__(self) -> None:
        if self.fourier is not None and not self.unit_cube:
            raise ValueError(
                "fourier is given, but unit_cube is false; Fourier features need coordinates in "
                "[-1, 1], so leave one of them out"
            )

    @property
    def fourier_member(self) -> str:
        """The name of the shard member that holds the Fourier features, if they are stored."""
        return "points.fourier.npy"
