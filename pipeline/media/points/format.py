"""What every mesh or point cloud becomes: configuration, free of trimesh."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pipeline.media.checks import check_finite, check_one_of, check_whole
from pipeline.media.format import MediaFormat

NUM_DIMS = 3


@dataclass(frozen=True, kw_only=True)
class PointsFourier:
    """Fourier features of every point's own coordinates, stored beside them.

    Attributes:
        num_bands: frequencies for each coordinate.
        max_resolution: the highest frequency is half of it. None takes the default of the adapter
            `points`: `sqrt(num_points / π)`, as fine as the points lie.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    num_bands: int = 64
    max_resolution: float | None = None

    def __post_init__(self) -> None:
        check_whole(self, "num_bands", least=1)
        if self.max_resolution is not None:
            check_finite(self, "max_resolution", above=0.0)

    @property
    def channels(self) -> int:
        """Channels of a point's features."""
        return NUM_DIMS * (2 * self.num_bands + 1)

    def resolution(self, num_points: int) -> float:
        """`max_resolution`, or its default for clouds of so many points.

        The same as `default_max_resolution` of `perceiver_model.adapters.points_config`.
        """
        if self.max_resolution is not None:
            return self.max_resolution
        return max(2.0, math.sqrt(num_points / math.pi))


@dataclass(frozen=True, kw_only=True)
class PointsFormat(MediaFormat):
    """Point clouds of up to `num_points` points, stored as float16.

    Attributes:
        num_points: of every mesh; clouds that have fewer points are stored as they are and masked.
        sample: `surface` draws points from meshes' faces, uniformly by area; `points` takes a
            random part of the points of a cloud, or of a mesh's vertices; `auto` does the one
            for files that have faces, and the other for files that have none.
        seed: of the draw, together with the file's content.
        unit_cube: bring every cloud to zero mean and into the unit cube before it is stored, with
            the largest coordinate at ±1. Otherwise coordinates are stored as they are, and clouds
            that float16 cannot hold to 1/1000 of their size, or at all, are refused.
        fourier: store the points' Fourier features, too.
        max_faces, max_points: meshes and clouds with more are refused.
    """

    modality: ClassVar[str] = "points"

    num_points: int
    sample: Literal["auto", "surface", "points"] = "auto"
    seed: int = 0
    unit_cube: bool = True
    fourier: PointsFourier | None = None
    max_faces: int = 5_000_000
    max_points: int = 20_000_000

    def __post_init__(self) -> None:
        check_whole(self, "num_points", "max_faces", "max_points", least=1)
        check_whole(self, "seed", least=0)
        check_one_of(self, "sample", "auto", "surface", "points")
        check_one_of(self, "unit_cube", True, False)
        if self.fourier is not None and not self.unit_cube:
            raise ValueError(
                "fourier is given, but unit_cube is false; Fourier features need coordinates in "
                "[-1, 1], so leave one of them out"
            )

    @property
    def fourier_member(self) -> str:
        """Name of the shard member that holds the Fourier features, where there are some."""
        return "points.fourier.npy"
