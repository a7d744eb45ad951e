"""The configuration of point clouds and of their Fourier features. It does not import torch."""

import math
from typing import Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.config_checks import Count, PositiveNumber, WholeNumber, config_dataclass


@config_dataclass
class PointsInput:
    """Point clouds `[batch, num_points, num_dims + num_features]`, floating point.

    The first `num_dims` channels are the coordinates of a point: x, y and z. The other channels are
    read unchanged. Samples with fewer points are padded and masked.

    Attributes:
        kind: Must be `points`.
        num_points: The largest number of points in a sample, at least 1.
        num_dims: The number of coordinates of a point, at least 1.
        num_features: The number of other channels of a point, at least 0.
        unit_cube: Whether to move the valid points of every sample to zero mean and to scale them
            into the unit cube, so that the largest coordinate is 1 or -1 (paper, section 4.3). If
            it is False, the coordinates should already lie in [-1, 1].
    """

    kind: Literal["points"] = "points"
    num_points: Count
    num_dims: Count = 3
    num_features: WholeNumber = 0
    unit_cube: bool = True

    @property
    def channels(self) -> int:
        """The number of channels of a point: its coordinates and features."""
        return self.num_dims + self.num_features


@config_dataclass
class PointsConfig(AdapterBase):
    """One token per point: its features and the Fourier features of its coordinates.

    Attributes:
        kind: Must be `points`.
        num_bands: The number of frequencies per coordinate, at least 1.
        max_resolution: The resolution of all coordinates, above 0, as in `FourierConfig`. The
            highest frequency is half of it. None means `default_max_resolution`, which follows from
            the number of points. The paper uses 2240 for ModelNet40. That is far above what the
            distances between points can distinguish, so it needs as much data as the paper has.
    """

    reads = (PointsInput,)
    holds_positions = True

    kind: Literal["points"] = "points"
    num_bands: Count = 64
    max_resolution: PositiveNumber | None = None

    def token_grid(self, points: PointsInput) -> tuple[int, ...]:
        """Return the number of points, `(num_points,)`."""
        return (points.num_points,)

    def content_channels(self, points: PointsInput) -> int:
        """Return the number of features plus `2 * num_bands + 1` channels per coordinate."""
        return points.num_features + points.num_dims * (2 * self.num_bands + 1)

    def resolution(self, points: PointsInput) -> float:
        """Return `max_resolution`, or its default for these points if it is None."""
        if self.max_resolution is not None:
            return self.max_resolution
        return default_max_resolution(points.num_points, points.num_dims)


def default_max_resolution(num_points: int, num_dims: int = 3) -> float:
    """Return the resolution whose Nyquist frequency matches the mean distance between points.

    Points of a surface in the unit cube are about `sqrt(4 π / num_points)` apart, as on the unit
    sphere. The samples of a resolution r are 2 / r apart, so r is `sqrt(num_points / π)`. In a
    plane of area 4, r is `sqrt(num_points)`; on a line, r is `num_points`. The result is at least
    2, where the highest frequency equals the lowest, 1.

    Args:
        num_points: The number of points in a cloud.
        num_dims: The number of coordinates of a point.
    """
    if num_dims == 1:
        return float(max(2, num_points))
    return max(2.0, math.sqrt(num_points / (math.pi if num_dims >= 3 else 1.0)))
