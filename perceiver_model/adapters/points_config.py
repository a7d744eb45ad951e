"""Point clouds as input, and the Fourier features of their own positions: free of torch."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.config_checks import (
    FORBID_EXTRA,
    check_counts,
    check_number,
    check_one_of,
    check_positive_integers,
)


@dataclass(frozen=True, kw_only=True)
class PointsInput:
    """Point clouds `[batch, num_points, num_dims + num_features]`, floating.

    The first `num_dims` channels are a point's coordinates, x, y and z; the others are read as
    they are. Samples of fewer points are padded and masked.

    Attributes:
        kind: must be `points`.
        num_points: the largest number of points in a sample, at least 1.
        num_dims: coordinates of a point, at least 1.
        num_features: further channels of a point, at least 0.
        unit_cube: whether every sample's valid points are brought to zero mean and into the unit
            cube, with the largest coordinate at ±1, as the paper does (section 4.3). If False,
            coordinates should lie in [-1, 1] already.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["points"] = "points"
    num_points: int
    num_dims: int = 3
    num_features: int = 0
    unit_cube: bool = True

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_points", "num_dims")
        check_counts(self, "num_features")
        check_one_of(self, "unit_cube", True, False)

    @property
    def channels(self) -> int:
        """Channels of a point: its coordinates and features."""
        return self.num_dims + self.num_features


@dataclass(frozen=True, kw_only=True)
class Points(AdapterBase):
    """One token per point: its features, and the Fourier features of its coordinates.

    Attributes:
        kind: must be `points`.
        num_bands: frequencies for each coordinate, at least 1.
        max_resolution: as in `FourierConfig`, one number above 0 for all coordinates; the highest
            frequency is half of it. None takes `default_max_resolution`, which follows from the
            number of points. The paper has 2240 for ModelNet40, far above what the distances
            between points can tell apart; such a value needs as much data as the paper's.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA
    reads = (PointsInput,)
    holds_positions = True

    kind: Literal["points"] = "points"
    num_bands: int = 64
    max_resolution: float | None = None

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_bands")
        if self.max_resolution is not None:
            check_number(self, "max_resolution", above=0)

    def token_grid(self, points: PointsInput) -> tuple[int, ...]:
        """The number of points."""
        return (points.num_points,)

    def content_channels(self, points: PointsInput) -> int:
        """A point's features, and its coordinates with 2 channels per band for each."""
        return points.num_features + points.num_dims * (2 * self.num_bands + 1)

    def resolution(self, points: PointsInput) -> float:
        """`max_resolution`, or its default for these points."""
        if self.max_resolution is not None:
            return self.max_resolution
        return default_max_resolution(points.num_points, points.num_dims)


def default_max_resolution(num_points: int, num_dims: int = 3) -> float:
    """The resolution whose Nyquist frequency is that of the points' mean distance.

    In the unit cube, points of a surface are about `sqrt(4 π / num_points)` apart, as on the unit
    sphere, and a resolution of r has samples 2 / r apart: so r is `sqrt(num_points / π)`. In a
    plane, with an area of 4, it is `sqrt(num_points)`; on a line, `num_points`. At least 2, whose
    highest frequency is the lowest, 1.
    """
    if num_dims == 1:
        return float(max(2, num_points))
    return max(2.0, math.sqrt(num_points / (math.pi if num_dims >= 3 else 1.0)))
