"""Read STL files, binary and text: triangles that hold the coordinates of their corners."""

import re

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.points.format import PointsFormat
from pipeline.media.points.polygons import check_counts

HEADER_BYTES = 84
RECORD = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])

_SOLID = re.compile(rb"\s*solid(?![^\s])[^\r\n]*", re.IGNORECASE)
_END = re.compile(rb"\s*end\s*solid(?![^\s])[^\r\n]*", re.IGNORECASE)
_FACET = re.compile(
    rb"\s*facet(?:\s+normal(?:\s+\S+){0,3}?)?\s+outer\s*loop"
    + rb"\s+vertex\s+([^\s_]+)\s+([^\s_]+)\s+([^\s_]+)" * 3
    + rb"\s+end\s*loop\s+end\s*facet(?![^\s])",
    re.IGNORECASE,
)
_FACETS_AT_ONCE = 2**14


def is_binary_stl(data: bytes, *, exact: bool) -> bool:
    """Return whether the length of the file is that of a binary STL with the declared count.

    Args:
        data: The file's bytes.
        exact: Whether the length must match exactly. Otherwise a rest is accepted if it is smaller
            than one triangle, because exporters append comments. A larger rest puts the count
            itself in doubt.
    """
    if len(data) < HEADER_BYTES:
        return False
    count = int.from_bytes(data[80:HEADER_BYTES], "little")
    rest = len(data) - HEADER_BYTES - RECORD.itemsize * count
    return rest == 0 if exact else count > 0 and 0 <= rest < RECORD.itemsize


def lacking_stl(data: bytes, max_faces: int) -> str:
    """Return a remark on bytes that could be a binary STL cut short, else an empty string.

    Args:
        data: The file's bytes.
        max_faces: The largest number of faces that is accepted.
    """
    count = int.from_bytes(data[80:HEADER_BYTES], "little")
    found = (len(data) - HEADER_BYTES) // RECORD.itemsize
    if not 0 < found < count <= max_faces:
        return ""
    return f" (as binary STL it would be cut short: {found} of {count} faces are there)"


def read_stl(data: bytes, fmt: PointsFormat) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners, float64 `[3 * faces, 3]`, and the triangles, int64 `[faces, 3]`."""
    count = int.from_bytes(data[80:HEADER_BYTES], "little")
    check_counts(count, 3 * count, fmt)
    records = np.frombuffer(data, RECORD, count, HEADER_BYTES)
    return _apart(records["corners"].astype(np.float64))


def read_stl_ascii(data: bytes, fmt: PointsFormat) -> tuple[np.ndarray, np.ndarray]:
    """Read a text STL; return the same as `read_stl`, for all solids together.

    Raises:
        MediaError: The file holds something other than facets in solids, or a solid has no end.
    """
    solids = [np.empty((0, 3, 3))]
    offset, faces = 0, 0
    while solid := _SOLID.match(data, offset):
        corners, offset = _facets(data, solid.end(), faces, fmt)
        faces += len(corners)
        end = _END.match(data, offset)
        if end is None:
            raise MediaError(_what_is_wrong(data, offset, faces))
        offset = end.end()
        solids.append(corners)
    if data[offset:].strip(b" \t\r\n\v\f\0"):
        raise MediaError(_what_is_wrong(data, offset, faces))
    return _apart(np.concatenate(solids))


def _apart(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3)


def _facets(data: bytes, offset: int, before: int, fmt: PointsFormat) -> tuple[np.ndarray, int]:
    """Return the facets from `offset` on, float64 `[faces, 3, 3]`, and the offset of their end."""
    parts = [np.empty(0)]
    words: list[bytes] = []
    count = 0
    while facet := _FACET.match(data, offset):
        words.extend(facet.groups())
        offset, count = facet.end(), count + 1
        if len(words) >= 9 * _FACETS_AT_ONCE:
            check_counts(before + count, 3 * (before + count), fmt)
            parts.append(_numbers(words))
            words = []
    check_counts(before + count, 3 * (before + count), fmt)
    parts.append(_numbers(words))
    return np.concatenate(parts).reshape(-1, 3, 3), offset


def _numbers(words: list[bytes]) -> np.ndarray:
    try:
        return np.fromiter(map(float, words), np.float64, len(words))
    except ValueError:
        raise MediaError("damaged STL: a vertex is not of three numbers") from None


def _what_is_wrong(data: bytes, offset: int, faces: int) -> str:
    rest = data[offset:]
    if not re.search(rb"end\s*solid", rest, re.IGNORECASE):
        return f"cut short: it ends after {faces} whole faces without endsolid"
    before = data[: offset + len(rest) - len(rest.lstrip())]
    line = len((before + b".").splitlines())
    return f"damaged STL: at line {line} begins neither a whole facet nor a solid's end"
