"""Prepare binary glTF (GLB) for trimesh: what trimesh would skip is refused or rewritten."""

import base64
import json
from typing import Any

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.points.format import PointsFormat
from pipeline.media.points.polygons import check_counts

_EXTENSIONS = frozenset(
    ["KHR_draco_mesh_compression", "EXT_meshopt_compression", "EXT_mesh_gpu_instancing"]
)
_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
_NOT_READ = {1: "lines", 2: "loops of lines", 3: "strips of lines"}
"""The modes of primitives (glTF 2.0, 3.7.2.1) that have no surface."""
_INDEX_TYPES = {5121: "<u1", 5123: "<u2", 5125: "<u4"}
_HEADER_BYTES, _CHUNK_HEADER_BYTES = 12, 8
_DATA_URI = "data:application/octet-stream;base64,"


def readable_glb(data: bytes, fmt: PointsFormat) -> bytes:
    """Rewrite the file's triangle fans as triangles, which trimesh reads.

    Raises:
        MediaError: The file declares more bytes than it has, declares larger arrays than `fmt`
            allows, or holds something that trimesh would skip.
    """
    declared = int.from_bytes(data[8:12], "little")
    if declared > len(data):
        raise MediaError(f"cut short: {len(data)} of {declared} bytes are there")
    start = _HEADER_BYTES + _CHUNK_HEADER_BYTES
    end = start + int.from_bytes(data[12:16], "little")
    tree = json.loads(data[start:end])
    _check(tree, fmt)
    primitives = [each for mesh in tree.get("meshes", ()) for each in mesh["primitives"]]
    _check_modes({each.get("mode", _TRIANGLES) for each in primitives}, fmt)
    fans = [each for each in primitives if each.get("mode") == _FAN]
    if not fans:
        return data
    for fan in fans:
        _write_as_triangles(fan, tree, data[end + _CHUNK_HEADER_BYTES :])
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    rest = text + data[end:]
    sizes = (_HEADER_BYTES + _CHUNK_HEADER_BYTES + len(rest), len(text))
    written = (size.to_bytes(4, "little") for size in sizes)
    return data[:8] + next(written) + next(written) + data[16:20] + rest


def _check(tree: dict[str, Any], fmt: PointsFormat) -> None:
    """Refuse arrays that a few bytes of JSON would make large, and what trimesh would skip."""
    for name in sorted(_EXTENSIONS & set(tree.get("extensionsUsed", ()))):
        raise MediaError(f"it uses {name}, which is not read")
    if any(
        any(each.get("weights", ())) for kind in ("nodes", "meshes") for each in tree.get(kind, ())
    ):
        raise MediaError("it uses morph targets, which are not read")
    primitives = [each for mesh in tree.get("meshes", ()) for each in mesh["primitives"]]
    for number in {each["attributes"].get("POSITION") for each in primitives} - {None}:
        if tree["accessors"][number].get("normalized"):
            raise MediaError("its positions are normalized integers, which are not read")
    if any("sparse" in accessor for accessor in tree.get("accessors", ())):
        raise MediaError("it uses sparse accessors, which are not read")
    for accessor in tree.get("accessors", ()):
        if accessor["count"] > max(3 * fmt.max_faces, fmt.max_points):
            check_counts(accessor["count"] // 3, accessor["count"], fmt)
    for each in primitives:
        for number in (each["attributes"].get("POSITION"), each.get("indices")):
            if number is not None and "bufferView" not in tree["accessors"][number]:
                raise MediaError("its positions or corners are in no buffer that is read")


def _check_modes(modes: set[Any], fmt: PointsFormat) -> None:
    """Refuse primitives that would be missing from the sampled geometry."""
    for mode in sorted(modes, key=str):
        if mode not in (_POINTS, _TRIANGLES, _STRIP, _FAN):
            name = _NOT_READ.get(mode) if isinstance(mode, int) else None
            raise MediaError(f"it has primitives of mode {mode!r} ({name or 'unknown'}), not read")
    if _POINTS in modes and len(modes) > 1 and fmt.sample != "points":
        raise MediaError(
            "it mixes points with triangles, and a surface has no place for the points (set "
            "sample: points to draw from all points and corners)"
        )


def _write_as_triangles(fan: dict[str, Any], tree: dict[str, Any], binary: bytes) -> None:
    """Change a fan in the tree into triangles, and store their corners in a new buffer."""
    if "indices" in fan:
        corners = _indices(tree, fan["indices"], binary)
    else:
        corners = np.arange(tree["accessors"][fan["attributes"]["POSITION"]]["count"])
    middle = corners[1:-1]
    faces = np.stack([np.broadcast_to(corners[:1], middle.shape), middle, corners[2:]], axis=1)
    content = faces.astype("<u4").tobytes()
    uri = _DATA_URI + base64.b64encode(content).decode("ascii")
    tree["buffers"].append({"byteLength": len(content), "uri": uri})
    tree["bufferViews"].append(
        {"buffer": len(tree["buffers"]) - 1, "byteOffset": 0, "byteLength": len(content)}
    )
    tree["accessors"].append(
        {
            "bufferView": len(tree["bufferViews"]) - 1,
            "componentType": 5125,
            "count": faces.size,
            "type": "SCALAR",
        }
    )
    fan.update(mode=_TRIANGLES, indices=len(tree["accessors"]) - 1)


def _indices(tree: dict[str, Any], number: int, binary: bytes) -> np.ndarray:
    """Return the values of a scalar accessor, which must lie in the file itself, as int64."""
    accessor = tree["accessors"][number]
    view = tree["bufferViews"][accessor["bufferView"]]
    buffer = tree["buffers"][view["buffer"]]
    if "uri" in buffer:
        if not buffer["uri"].startswith("data:"):
            raise MediaError("it needs another file, which is not read")
        binary = base64.b64decode(buffer["uri"].partition(",")[2])
    start = view.get("byteOffset", 0)
    held = binary[start : start + view["byteLength"]]
    dtype = np.dtype(_INDEX_TYPES[accessor["componentType"]])
    values = np.frombuffer(held, dtype, accessor["count"], accessor.get("byteOffset", 0))
    return values.astype(np.int64)
