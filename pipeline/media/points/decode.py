"""Decode meshes and point clouds: draw points with a seed, scale them, round them to float16."""

import hashlib

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.points.format import NUM_DIMS, PointsFormat, PointsFourier
from pipeline.media.points.meshes import Geometry, read_geometry

__all__ = ["PointsFormat", "PointsFourier", "decode_points"]

MAX_ROUNDING = 1e-3
"""The largest rounding error of float16, relative to the size of a cloud."""


def decode_points(data: bytes, fmt: PointsFormat, *, strict: bool = True) -> np.ndarray:
    """Draw points from a mesh's surface or from a cloud, as `fmt.sample` says.

    The drawn points depend only on `fmt.seed` and the file's bytes.

    Args:
        data: The file's bytes: a mesh as OBJ, PLY, OFF, STL or GLB, or a cloud as PLY, XYZ text,
            NPY `[points, 3 or more]` or LAS. The format is recognised by the content.
        fmt: How many points to draw, and what to draw them from.
        strict: Whether to also refuse files that look cut short or damaged but could be read.

    Returns:
        float16 `[points, 3]`: `fmt.num_points` points, or fewer if a cloud has fewer.

    Raises:
        MediaError: The file has none of these formats, has no faces or points, has coordinates that
            are not finite or that float16 cannot hold, or exceeds `max_faces` or `max_points`.
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
    """Move a cloud to zero mean and scale it into [-1, 1], by the same factor in all dimensions.

    Args:
        points: float64 `[points, 3]`.

    Returns:
        float64 `[points, 3]`. If all points coincide, they become zero.
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
    """Draw points uniformly by area from the faces, float64 `[num_points, 3]`."""
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
    """Return twice the areas of triangles `[faces, 3, 3]`."""
    with np.errstate(over="ignore", invalid="ignore"):
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        return np.sqrt((normals * normals).sum(axis=1))


def _among_points(
    geometry: Geometry, fmt: PointsFormat, generator: np.random.Generator
) -> np.ndarray:
    """Return all points in order, or `num_points` of them drawn without replacement, float64."""
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
