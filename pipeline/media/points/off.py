"""Read OFF files: points and polygons as text."""

import re

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.points.format import PointsFormat
from pipeline.media.points.number_lines import listed, number_lines
from pipeline.media.points.polygons import check_counts, corner_numbers, triangles

OFF_START = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*((?:ST|C|N|4|n){0,5})OFF(?=[\s\d#]|\Z)")
"""Comments and the keyword. ST, C and N mean that more columns follow the coordinates."""


def read_off(data: bytes, fmt: PointsFormat) -> tuple[np.ndarray, np.ndarray]:
    """Return the points, float64 `[points, 3]`, and the triangles, int64 `[faces, 3]`.

    Colours, normals and texture coordinates are ignored.

    Raises:
        MediaError: This kind of OFF is not read, the file does not have the number of lines that
            its header declares, or `fmt` allows fewer faces or points.
    """
    start = OFF_START.match(data)
    if start is None:
        raise MediaError("damaged OFF: it does not begin with OFF")
    for sign, meaning in ((b"4", "points of four coordinates"), (b"n", "points of any dimension")):
        if sign in start[1]:
            raise MediaError(f"{start[1].decode()}OFF, {meaning}, which is not read")
    if re.match(rb"\s*BINARY\b", data[start.end() :]):
        raise MediaError("binary OFF, which is not read; save it as text")
    lines = data[start.end() :].splitlines()
    if b"#" in data:
        lines = [line.partition(b"#")[0] for line in lines]
    lines = [line for line in lines if line and not line.isspace()]
    num_points, num_faces = _counts(lines[0] if lines else b"")
    check_counts(num_faces, num_points, fmt)
    _check_num_lines(len(lines) - 1, num_points, num_faces)
    points = _points(lines[1 : 1 + num_points])
    corners, counts = _polygons(lines[1 + num_points :])
    return points, triangles(corners, counts, fmt)


def _counts(line: bytes) -> tuple[int, int]:
    words = line.split()
    if len(words) not in (2, 3) or not all(re.fullmatch(rb"\d{1,18}", word) for word in words):
        raise MediaError("damaged OFF: no numbers of points, faces and edges follow the word OFF")
    return int(words[0]), int(words[1])


def _check_num_lines(num_lines: int, num_points: int, num_faces: int) -> None:
    if num_lines < num_points:
        raise MediaError(f"cut short: {num_lines} of {num_points} points are there")
    if num_lines < num_points + num_faces:
        raise MediaError(f"cut short: {num_lines - num_points} of {num_faces} faces are there")
    if num_lines > num_points + num_faces:
        more = num_lines - num_points - num_faces
        raise MediaError(f"damaged OFF: it has more lines than its header says, by {more}")


def _points(lines: list[bytes]) -> np.ndarray:
    numbers, starts = number_lines(lines, "damaged OFF: point")
    lengths = np.diff(starts)
    if not lines:
        return np.empty((0, 3))
    if lengths[0] < 3 or (lengths != lengths[0]).any():
        odd = int(np.argmax((lengths < 3) | (lengths != lengths[0])))
        raise MediaError(
            f"damaged OFF: point {odd + 1} has {lengths[odd]} numbers, the first {lengths[0]}"
        )
    return numbers.reshape(len(lines), -1)[:, :3]


def _polygons(lines: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    numbers, starts = number_lines(lines, "damaged OFF: face")
    counts = numbers[starts[:-1]]
    wrong = ~((counts >= 0) & (counts == np.floor(counts)) & (counts < np.diff(starts)))
    if wrong.any():
        raise MediaError(
            f"damaged OFF: face {np.argmax(wrong) + 1} has not the corners that it says"
        )
    counts = counts.astype(np.int64)
    return corner_numbers(listed(numbers, starts[:-1] + 1, counts)), counts
