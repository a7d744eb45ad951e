"""Cut polygons into triangles, and limit how many triangles and points a file may hold."""

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.points.format import PointsFormat


def check_counts(faces: int, points: int, fmt: PointsFormat) -> None:
    """Refuse more faces or points than `fmt` allows.

    Raises:
        MediaError: There are more faces or points.
    """
    if faces > fmt.max_faces:
        raise MediaError(f"{faces} faces, more than max_faces={fmt.max_faces}")
    if points > fmt.max_points:
        raise MediaError(f"{points} points, more than max_points={fmt.max_points}")


def triangles(corners: np.ndarray, counts: np.ndarray, fmt: PointsFormat) -> np.ndarray:
    """Cut polygons into fans of triangles around their first corners.

    Polygons of one or two corners are left out.

    Args:
        corners: Indices of vertices, int64 `[sum(counts)]`, polygon after polygon.
        counts: The number of corners of each polygon, int64 `[polygons]`.
        fmt: The format, which limits the number of triangles.

    Returns:
        int64 `[faces, 3]`, in trimesh's order: triangles, the first halves of quadrangles, their
        second halves, and the fans of larger polygons. The points drawn with a seed depend on this
        order.

    Raises:
        MediaError: There are more triangles than `max_faces`.
    """
    check_counts(int(np.maximum(counts - 2, 0).sum()), 0, fmt)
    starts = np.cumsum(counts) - counts
    three, four = starts[counts == 3, None], starts[counts == 4, None]
    fans = counts[counts > 4] - 2
    hubs = np.repeat(starts[counts > 4], fans)
    steps = np.arange(len(hubs)) - np.repeat(np.cumsum(fans) - fans, fans)
    indices = [
        three + np.array([0, 1, 2]),
        four + np.array([0, 1, 2]),
        four + np.array([2, 3, 0]),
        np.stack([hubs, hubs + steps + 1, hubs + steps + 2], axis=1),
    ]
    return corners[np.concatenate(indices)]


def corner_numbers(values: np.ndarray) -> np.ndarray:
    """Return indices of vertices, given in any dtype, as int64.

    Raises:
        MediaError: An index is not whole, is negative, or is too large for any vertex.
    """
    if values.dtype.kind == "f" and not (values == np.floor(values)).all():
        raise MediaError("a face names a point by a number that is not whole")
    if len(values) and not 0 <= values.min() <= values.max() < 2**53:
        raise MediaError("a face names a point that is not there")
    return values.astype(np.int64)
