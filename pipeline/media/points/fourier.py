"""Fourier features of points' own coordinates, in DeepMind's layout, with NumPy only.

The numbers equal those of `perceiver_model.fourier.fourier_features`. This module is for decoders
that run without torch.
"""

import math

import numpy as np

from pipeline.media.points.format import PointsFormat


def point_features(points: np.ndarray, fmt: PointsFormat) -> np.ndarray:
    """Return the Fourier features of stored coordinates, computed in float64.

    Args:
        points: Floating-point `[points, dims]` in [-1, 1], rounded to float16 as in a shard. The
            features are those of these rounded numbers.
        fmt: The format of the points, which has `fourier`.

    Returns:
        float16 `[points, dims * (2 * num_bands + 1)]`: the coordinates, then for each coordinate
            the
        sines of all bands, then for each coordinate the cosines of all bands.
    """
    positions = points.astype(np.float64)
    assert fmt.fourier is not None
    highest = fmt.fourier.resolution(fmt.num_points) / 2
    frequencies = _evenly(1.0, highest, fmt.fourier.num_bands)
    angles = math.pi * (positions[:, :, None] * frequencies).reshape(len(positions), -1)
    features = np.concatenate([positions, np.sin(angles), np.cos(angles)], axis=1)
    return features.astype(np.float32).astype(np.float16)


def _evenly(first: float, last: float, count: int) -> np.ndarray:
    """Return `count` evenly spaced numbers, each computed from the nearer end, as torch does it."""
    if count == 1:
        return np.array([first])
    step = (last - first) / (count - 1)
    numbers = np.arange(count)
    near = numbers < count // 2
    return np.where(near, first + step * numbers, last - step * (count - 1 - numbers))
