"""Recognise the format of meshes and point clouds by their content, and read what they hold."""

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from pipeline.media.errors import MediaError, one_line
from pipeline.media.points.clouds import is_number, read_las, read_npy, read_xyz, words_of
from pipeline.media.points.format import PointsFormat
from pipeline.media.points.glb import readable_glb
from pipeline.media.points.obj import usual_obj
from pipeline.media.points.off import OFF_START, read_off
from pipeline.media.points.ply import read_ply
from pipeline.media.points.polygons import check_counts
from pipeline.media.points.stl import is_binary_stl, lacking_stl, read_stl, read_stl_ascii

TEXT_HEAD = 4096
"""The number of bytes within which a text format must be recognised."""


@dataclass(frozen=True)
class MeshInstance:
    """One mesh or cloud at one position in the scene.

    Attributes:
        vertices: float64 `[points, 3]`, finite.
        faces: Indices of vertices, int64 `[faces, 3]`; empty for a cloud.
        transform: The transform into the scene, float64 `[4, 4]`; None if there is none.
    """

    vertices: np.ndarray
    faces: np.ndarray
    transform: np.ndarray | None = None

    def scene_vertices(self) -> np.ndarray:
        """Return the vertices in the scene, after the transform, float64 `[points, 3]`."""
        if self.transform is None:
            return self.vertices
        with np.errstate(over="ignore", invalid="ignore"):
            moved = self.vertices @ self.transform[:3, :3].T + self.transform[:3, 3]
        return _finite(moved)


@dataclass(frozen=True)
class Geometry:
    """Everything that a file holds.

    Attributes:
        parts: The meshes and clouds.
    """

    parts: tuple[MeshInstance, ...]

    @property
    def num_faces(self) -> int:
        """The number of triangles of all parts."""
        return sum(len(part.faces) for part in self.parts)

    def triangles(self) -> Iterator[np.ndarray]:
        """Yield each part's corners, float64 `[faces, 3, 3]`."""
        for part in self.parts:
            if len(part.faces):
                yield part.scene_vertices()[part.faces]

    def points(self) -> np.ndarray:
        """Return all vertices, float64 `[points, 3]`."""
        return np.concatenate([part.scene_vertices() for part in self.parts])


def read_geometry(data: bytes, fmt: PointsFormat, *, strict: bool = True) -> Geometry:
    """Read the geometry of a file. Nothing outside the file is read.

    Args:
        data: The file's bytes.
        fmt: The format, which limits the numbers of faces and points.
        strict: Whether to also refuse files that look cut short or damaged but could be read.

    Raises:
        MediaError: The file has none of the formats, is damaged or cut short, has coordinates that
            are not finite, or has more faces or points than `fmt` allows.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    kind = _kind(data, fmt.max_faces)
    try:
        if kind in ("xyz", "npy", "las"):
            reader = {"xyz": read_xyz, "npy": read_npy, "las": read_las}[kind]
            points = _finite(reader(data, fmt.max_points))
            return Geometry((MeshInstance(points, np.empty((0, 3), np.int64)),))
        if kind in _MESHES:
            return _whole([_part(*_MESHES[kind](data, fmt))])
        return _read_scene(data, kind, fmt, strict)
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError("not enough memory to decode it") from error
    except Exception as error:  # trimesh's readers raise almost any exception on malformed bytes
        raise MediaError(f"damaged {kind.upper()}: {one_line(error)}") from error


def _kind(data: bytes, max_faces: int) -> str:
    if data.startswith(b"glTF"):
        return "glb"
    if data.startswith(b"\x93NUMPY"):
        return "npy"
    if data.startswith(b"LASF"):
        return "las"
    if data[:4].rstrip() == b"ply":
        return "ply"
    head = data[:TEXT_HEAD]
    if OFF_START.match(head):
        return "off"
    if is_binary_stl(data, exact=True):
        return "stl"
    # Text may have any 8-bit encoding, but a zero byte never occurs in text.
    is_text = b"\0" not in head
    if is_text and re.match(rb"\s*solid", head, re.IGNORECASE) and b"facet" in head.lower():
        return "stl_ascii"
    if is_binary_stl(data, exact=False):
        return "stl"
    kind = _text_kind(head.decode("latin-1")) if is_text else None
    if kind is None:
        stl = "" if is_text else lacking_stl(data, max_faces)
        raise MediaError(f"none of OBJ, PLY, OFF, STL, GLB, XYZ, NPY and LAS{stl}")
    return kind


def _text_kind(head: str) -> str | None:
    lines = [words_of(line) for line in head.replace("//", "#").splitlines()]
    lines = [words for words in lines if words]
    if lines and lines[0][0] in _OBJ_WORDS:
        return "obj"
    # Numbers, perhaps below a line of column names.
    for words in lines[:2]:
        if all(map(is_number, words[:3])):
            return "xyz"
    return None


_OBJ_WORDS = frozenset(["v", "vn", "vt", "vp", "f", "l", "p", "o", "g", "s", "mtllib", "usemtl"])


_MESHES = {"ply": read_ply, "off": read_off, "stl": read_stl, "stl_ascii": read_stl_ascii}


class _NothingElse(dict[Any, Any]):
    """A trimesh resolver that refuses: a mesh's textures could name any file or URL."""

    def __getitem__(self, name: object) -> NoReturn:
        raise MediaError("it needs another file, which is not read")

    def get(self, name: object, default: object = None) -> NoReturn:
        raise self[name]


def _read_scene(data: bytes, kind: str, fmt: PointsFormat, strict: bool) -> Geometry:
    import trimesh

    data = readable_glb(data, fmt) if kind == "glb" else usual_obj(data, strict=strict)
    file: Any = io.BytesIO(data)
    scene = trimesh.load_scene(
        file,
        file_type=kind,
        resolver=_NothingElse(),
        process=False,
        validate=False,
        skip_materials=True,
    )
    parts, faces, points = [], 0, 0
    for node in sorted(scene.graph.nodes_geometry):
        transform, name = scene.graph[node]
        geometry = scene.geometry[name]
        corners = np.asarray(getattr(geometry, "faces", np.empty((0, 3))), np.int64)
        faces, points = faces + len(corners), points + len(geometry.vertices)
        check_counts(faces, points, fmt)
        vertices = np.asarray(geometry.vertices, np.float64).reshape(-1, 3)
        moved = not np.array_equal(transform, np.eye(4))
        parts.append(_part(vertices, corners.reshape(-1, 3), transform if moved else None))
    return _whole(parts)


def _part(
    vertices: np.ndarray, faces: np.ndarray, transform: np.ndarray | None = None
) -> MeshInstance:
    if faces.size and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise MediaError("a face names a point that is not there")
    return MeshInstance(_finite(vertices), faces, transform)


def _whole(parts: list[MeshInstance]) -> Geometry:
    if not any(len(part.vertices) for part in parts):
        raise MediaError("it has neither faces nor points")
    return Geometry(tuple(parts))


def _finite(points: np.ndarray) -> np.ndarray:
    if not np.isfinite(points).all():
        raise MediaError("it holds coordinates that are not finite")
    return points
