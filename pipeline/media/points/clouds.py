"""Read point clouds from text, NumPy arrays and LAS: float64 `[points, 3]` in the file's units."""

import io
import math
import re
import struct
from itertools import takewhile

import numpy as np

from pipeline.media.errors import MediaError

LAS_HEADER_BYTES = 227
LAS_COMPRESSED = 0x80
"""The bit of a LAS file's point format that means LAZ."""

LAS_LONG_COUNTS = 6
"""From this point format on, only the 64-bit field holds the number of points."""


def read_xyz(data: bytes, max_points: int) -> np.ndarray:
    """Read lines of x, y, z and any further columns, separated by blanks, commas or semicolons.

    If the first line of numbers has both commas and semicolons, commas are decimal points. Two
    lines may precede it: one whole number (as in PTS files), which must be the number of lines that
    follow, and column names, which must begin with x, y, z. The names may also be in a comment, if
    it has a name for each column.

    Args:
        data: The file's bytes.
        max_points: The largest number of points that is accepted.

    Returns:
        float64 `[points, 3]`.

    Raises:
        MediaError: There are too many lines or points, a line is not of numbers, the columns have
            other names, or the number of lines is not the declared one.
    """
    if data.count(b"\n") > 2 * max_points + 1000:
        raise MediaError(f"more lines than max_points={max_points} allows")
    text = data.decode("latin-1").replace("//", "#")
    lines = [line for line in text.splitlines() if line and not line.isspace()]
    comments = list(takewhile(_is_comment, lines))
    lines = [line for line in lines if not _is_comment(line)]
    declared, names = _head(lines)
    lines = lines[(declared is not None) + (names is not None) :]
    _check_names(names, comments, len(words_of(lines[0])) if lines else 0)
    decimal_comma = bool(lines) and {",", ";"} <= set(lines[0].partition("#")[0])
    signs = str.maketrans({";": " ", ",": "." if decimal_comma else " "})
    lines = [line.translate(signs) for line in lines]
    _check_count(len(lines), max_points)
    try:
        points = np.empty((0, 3))
        if lines:
            points = np.loadtxt(lines, np.float64, usecols=(0, 1, 2), ndmin=2)
    except ValueError as error:
        raise MediaError(f"damaged XYZ: {' '.join(str(error).split())}") from error
    if declared is not None and declared != len(points):
        raise MediaError(f"cut short: {len(points)} of {declared} points are there")
    return points


def words_of(line: str) -> list[str]:
    """Return the words of a line of text, without its comment."""
    return line.partition("#")[0].replace(",", " ").replace(";", " ").split()


def is_number(word: str) -> bool:
    """Return whether Python reads the word as a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _head(lines: list[str]) -> tuple[int | None, list[str] | None]:
    """Return the number of points and the column names, if lines before the points give them."""
    declared, names = None, None
    for line in lines[:2]:
        words = words_of(line)
        if declared is None and len(words) == 1 and re.fullmatch("[0-9]{1,18}", words[0]):
            declared = int(words[0])
        elif names is None and not is_number(words[0] if words else ""):
            names = words
        else:
            break
    return declared, names


def _check_names(names: list[str] | None, comments: list[str], num_columns: int) -> None:
    for words in (names, *(words_of(line.lstrip("# \t")) for line in comments)):
        if words is None:
            continue
        plain = [word.strip("\"'").lower() for word in words]
        if words is not names and not (len(words) == num_columns and set(plain) >= set("xyz")):
            continue  # a remark
        if plain[:3] != ["x", "y", "z"]:
            raise MediaError(
                f"its columns are called {' '.join(words)[:60]!a}: x, y and z must come first "
                "(put them there, or take that line out if they do)"
            )


def read_npy(data: bytes, max_points: int) -> np.ndarray:
    """Return the first three columns of an array of real numbers `[points, 3 or more]`.

    Args:
        data: The file's bytes.
        max_points: The largest number of points that is accepted.

    Returns:
        float64 `[points, 3]`.

    Raises:
        MediaError: The array has another dtype or shape, has too many points, or is damaged.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise MediaError(f"NPY of version {version[0]}.{version[1]}")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    if dtype.kind not in "fiu" or len(shape) != 2 or shape[1] < 3:
        raise MediaError(f"NPY of {dtype} {list(shape)}, not of numbers [points, 3]")
    _check_count(shape[0], max_points)
    if len(data) - file.tell() != math.prod(shape) * dtype.itemsize:
        raise MediaError("damaged NPY: its size is not what its header says")
    flat = np.frombuffer(data, dtype, offset=file.tell())
    array = flat.reshape(shape, order="F" if fortran_order else "C")
    return array[:, :3].astype(np.float64)


def read_las(data: bytes, max_points: int) -> np.ndarray:
    """Return the points of an uncompressed LAS file, versions 1.0 to 1.4, in the file's units.

    Args:
        data: The file's bytes.
        max_points: The largest number of points that is accepted.

    Returns:
        float64 `[points, 3]`.

    Raises:
        MediaError: The file is compressed (LAZ), damaged or cut short, or has too many points.
    """
    if len(data) < LAS_HEADER_BYTES:
        raise MediaError("damaged LAS: its header is cut short")
    minor = data[25]
    header_bytes, offset = struct.unpack_from("<HI", data, 94)
    point_format, record_bytes, count = struct.unpack_from("<BHI", data, 104)
    scale_and_origin = struct.unpack_from("<6d", data, 131)
    if point_format & LAS_COMPRESSED:
        raise MediaError("LAZ, which is not read; decompress it to LAS")
    if minor >= 4 and min(len(data), header_bytes) >= 255:
        (long_count,) = struct.unpack_from("<Q", data, 247)
        if long_count or point_format >= LAS_LONG_COUNTS:  # some writers fill only the old field
            count = long_count
    if record_bytes < 12:
        raise MediaError(f"damaged LAS: records of {record_bytes} bytes")
    _check_count(count, max_points)
    if len(data) < offset + count * record_bytes:
        raise MediaError(
            f"cut short: {max(0, len(data) - offset) // record_bytes} of {count} points are there"
        )
    whole = np.ndarray((count, 3), "<i4", data, offset, (record_bytes, 4))
    return whole * np.array(scale_and_origin[:3]) + np.array(scale_and_origin[3:])


def _check_count(count: int, max_points: int) -> None:
    if count > max_points:
        raise MediaError(f"{count} points, more than max_points={max_points}")
