"""Meshes and point clouds: points drawn by a seed, in the unit cube, as float16."""

import hashlib

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.points.format import NUM_DIMS, PointsFormat, PointsFourier
from pipeline.media.points.meshes import Geometry, read_geometry

__all__ = ["PointsFormat", "PointsFourier", "decode_points"]

MAX_ROUNDING = 1e-3
"""Largest error by float16's rounding, as a share of a cloud's size."""


def decode_points(data: bytes, fmt: PointsFormat, *, strict: bool = True) -> np.ndarray:
    """Points of a mesh's surface, or of a cloud; which of them, `fmt.sample` says.

    What is drawn depends on `fmt.seed` and the file's bytes alone.

    Args:
        data: the file's bytes: OBJ, PLY, OFF, STL or GLB; a cloud as PLY, XYZ text, NPY
            `[points, 3 or more]` or LAS. Their content tells which.
        fmt: how many points and of what.
        strict: whether a file is refused, too, that is cut short or damaged where that only shows.

    Returns:
        float16 `[points, 3]`: `fmt.num_points`, or fewer of a cloud that has fewer.

    Raises:
        MediaError: none of these formats, without faces or points, with coordinates that are not
            finite or that float16 cannot hold, or beyond `max_faces` or `max_points`.
    """
    if not data:
        raise MediaError("the file is empty")
    geometry = read_geometry(data, fmt, strict=strict)
    generator = _generator(data, fmt.seed)
    if fmt.sample == "surface" or (fmt.sample == "auto" and geometry.num_faces):
        points = _on_surface(geometry, fmt, generator)
    else:
        points = _among_points(geometry, fmt, generator)
    return _rounded(to_unit_cube(points), fmt) if fmt.unit_cube else _rounded(points, fmt)


def to_unit_cube(points: np.ndarray) -> np.ndarray:
    """A cloud moved to zero mean and scaled alike in all dimensions into [-1, 1].

    Args:
        points: float64 `[points, 3]`. A cloud whose points all coincide becomes zero.
    """
    if (points == points[0]).all():
        return np.zeros_like(points)
    with np.errstate(over="ignore", invalid="ignore"):
        centred = points - points.mean(axis=0)
        return centred / np.abs(centred).max()


def _generator(data: bytes, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(seed.to_bytes(32, "little") + hashlib.sha256(data).digest()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def _on_surface(
    geometry: Geometry, fmt: PointsFormat, generator: np.random.Generator
) -> np.ndarray:
    """Points drawn uniformly from the faces by area, float64 `[num_points, 3]`."""
    if geometry.num_faces == 0:
        raise MediaError(
            "it has points, but no faces to sample (set sample: auto or points to take the points)"
        )
    areas = np.concatenate([_areas(corners) for corners in geometry.triangles()])
    edges = np.cumsum(areas)
    if not np.isfinite(edges[-1]):
        raise MediaError("its coordinates are too large")
    if edges[-1] <= 0:
        raise MediaError("its faces have no area")
    chosen = np.searchsorted(edges, generator.random(fmt.num_points) * edges[-1], side="right")
    chosen = np.minimum(chosen, np.flatnonzero(areas)[-1])
    first, second = generator.random((2, fmt.num_points, 1))
    outside = first + second > 1
    first, second = np.where(outside, 1 - first, first), np.where(outside, 1 - second, second)
    points = np.empty((fmt.num_points, NUM_DIMS))
    start = 0
    for corners in geometry.triangles():
        here = np.flatnonzero((chosen >= start) & (chosen < start + len(corners)))
        a, b, c = corners[chosen[here] - start].transpose(1, 0, 2)
        points[here] = a + first[here] * (b - a) + second[here] * (c - a)
        start += len(corners)
    return points


def _areas(corners: np.ndarray) -> np.ndarray:
    """Twice the areas of triangles `[faces, 3, 3]`."""
    with np.errstate(over="ignore", invalid="ignore"):
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        return np.sqrt((normals * normals).sum(axis=1))


def _among_points(
    geometry: Geometry, fmt: PointsFormat, generator: np.random.Generator
) -> np.ndarray:
    """All points in their order, or that many of them drawn without repetition, float64."""
    points = geometry.points()
    if not len(points):
        raise MediaError("it has no points")
    if len(points) <= fmt.num_points:
        return points
    drawn = np.argsort(generator.random(len(points)), kind="stable")[: fmt.num_points]
    return points[np.sort(drawn)]


def _rounded(points: np.ndarray, fmt: PointsFormat) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        stored = points.astype(np.float16)
        extent = np.ptp(points, axis=0).max()
        error = np.abs(stored.astype(np.float64) - points).max()
    if not np.isfinite(points).all():
        raise MediaError("its coordinates are too large")
    if not fmt.unit_cube and not (np.isfinite(error) and error <= MAX_ROUNDING * extent):
        raise MediaError(
            "float16 cannot hold its coordinates to 1/1000 of its size (set unit_cube: true)"
        )
    return stored
