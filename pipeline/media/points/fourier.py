"""Fourier features of points' own coordinates, in DeepMind's layout, with numpy alone.

The same numbers as `perceiver_model.fourier.fourier_features`, for decoders that run without torch.
"""

import math

import numpy as np

from pipeline.media.points.format import PointsFormat


def point_features(points: np.ndarray, fmt: PointsFormat) -> np.ndarray:
    """Features of stored coordinates, computed in float64.

    Args:
        points: floating `[points, dims]` in [-1, 1]; features are of these very numbers, rounded
            to float16 as they are in a shard.
        fmt: the format of the points, which has `fourier`.

    Returns:
        float16 `[points, dims * (2 * num_bands + 1)]`: the coordinates, then for each coordinate
        the sines of all bands, then the cosines likewise.
    """
    positions = points.astype(np.float64)
    assert fmt.fourier is not None
    highest = fmt.fourier.resolution(fmt.num_points) / 2
    frequencies = _evenly(1.0, highest, fmt.fourier.num_bands)
    angles = math.pi * (positions[:, :, None] * frequencies).reshape(len(positions), -1)
    features = np.concatenate([positions, np.sin(angles), np.cos(angles)], axis=1)
    return features.astype(np.float32).astype(np.float16)


def _evenly(first: float, last: float, count: int) -> np.ndarray:
    """`count` numbers from first to last, each reckoned from the nearer end, as torch does."""
    if count == 1:
        return np.array([first])
    step = (last - first) / (count - 1)
    numbers = np.arange(count)
    near = numbers < count // 2
    return np.where(near, first + step * numbers, last - step * (count - 1 - numbers))
