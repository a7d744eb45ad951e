"""Prepare OBJ files for trimesh: what trimesh would skip is rewritten or refused."""

import re

from pipeline.media.errors import MediaError

# trimesh skips or misreads these: tabs, indented lines, lines that end in a lone CR, comments after
# a statement, lines continued with a backslash, faces with negative indices, and the old keyword
# fo.
_UNUSUAL = re.compile(
    rb"\t|^ |\r(?!\n)|^f[^\r\n#]*-|^(?:v[tnp]?|f|l|p) [^\r\n]*#|\\[ ]*\r?$|^fo ", re.MULTILINE
)
_FREE_FORM = re.compile(rb"^[ \t]*(surf|curv2?)[ \t]", re.MULTILINE)
_CORNER_ZERO = re.compile(rb"^[ \t]*fo?[ \t](?:[^\r\n#]*[ \t])?0+(?=[/\s]|\Z)", re.MULTILINE)
_GEOMETRY = frozenset([b"v", b"vt", b"vn", b"vp", b"f", b"l", b"p"])
_HEAD_BYTES = 4096
_COUNTS = (
    ("points", re.compile(rb"^#\s*Vertices: (\d{1,15})\s*$", re.M), re.compile(rb"^v\s", re.M)),
    ("faces", re.compile(rb"^#\s*Faces: (\d{1,15})\s*$", re.M), re.compile(rb"^fo?\s", re.M)),
)
_LEAST_NUMBERS = {b"v": 3, b"f": 3}
_CONTROL = re.compile(rb"[^\t\n\v\f\r\x1a -~\x80-\xff]")


def usual_obj(data: bytes, *, strict: bool) -> bytes:
    """Return the file in a form that trimesh reads correctly.

    Args:
        data: The file's bytes.
        strict: Whether to refuse files that look cut short or damaged.

    Raises:
        MediaError: A face refers to a point that does not exist, or the file has a free-form
            surface, which trimesh would skip. If `strict` is set: the last line is incomplete, a
            byte does not belong to text, or the file has fewer points or faces than it declares.
    """
    if free_form := _FREE_FORM.search(data):
        name = free_form[1].decode()
        raise MediaError(f"it has free-form curves or surfaces ({name}), which are not read")
    if _CORNER_ZERO.search(data):
        raise MediaError("a face names a point that is not there")
    if strict:
        _check_damage(data)
    return _rewritten(data) if _UNUSUAL.search(data) else data


def _check_damage(data: bytes) -> None:
    if control := _CONTROL.search(data):
        line = data.count(b"\n", 0, control.start()) + 1
        raise MediaError(
            f"damaged: its line {line} holds the byte {control[0][0]}, which no text has"
        )
    _check_counts(data)
    if data.endswith((b"\n", b"\r")):
        return
    words = data.splitlines()[-1].partition(b"#")[0].split()
    least = _LEAST_NUMBERS.get(words[0], 0) if words else 0
    if words and len(words) - 1 < least:
        raise MediaError(f"cut short: its last line has {len(words) - 1} of {least} numbers")


def _check_counts(data: bytes) -> None:
    """Check the counts of points and faces that MeshLab and others write in comments."""
    for name, pattern, line in _COUNTS:
        declared = pattern.findall(data, 0, _HEAD_BYTES)
        if len(declared) == 1 and (found := len(line.findall(data))) < int(declared[0]):
            raise MediaError(f"cut short: {found} of {int(declared[0])} {name} are there")


def _rewritten(data: bytes) -> bytes:
    """Return the lines as trimesh reads them, with all indices of faces counted from the start."""
    counts = {b"v": 0, b"vt": 0, b"vn": 0}
    lines = []
    for words in _statements(data):
        if words and words[0] in counts:
            counts[words[0]] += 1
        elif words and words[0] in (b"f", b"fo"):
            words[0] = b"f"
            if any(b"-" in corner for corner in words):
                words[1:] = [_from_start(corner, [*counts.values()]) for corner in words[1:]]
        lines.append(b" ".join(words))
    return b"\n".join(lines) + b"\n"


def _statements(data: bytes) -> list[list[bytes]]:
    """Return the words of each statement: continued lines are joined, comments are removed."""
    statements: list[list[bytes]] = []
    begun: list[bytes] = []
    for line in data.splitlines():
        words = line.split()
        if not begun and words and words[0].startswith(b"#"):
            continue  # a backslash at its end, as in a folder's name, is part of the comment
        kind = (begun or words or [b""])[0]
        if kind in _GEOMETRY or kind == b"fo":
            words = line.partition(b"#")[0].split()
        goes_on = bool(words) and words[-1].endswith(b"\\")
        if goes_on:
            words = [*words[:-1], *filter(None, [words[-1][:-1]])]
        begun = begun + words
        if not goes_on:
            statements.append(begun)
            begun = []
    return [*statements, begun] if begun else statements


def _from_start(corner: bytes, counts: list[int]) -> bytes:
    """Return a face's corner, `v/vt/vn`, with negative indices counted from the start.

    A negative index counts back from the last element read so far.
    """
    numbers = corner.split(b"/")
    for index, (number, count) in enumerate(zip(numbers, counts, strict=False)):
        if number.startswith(b"-"):
            if -int(number) > count:
                raise MediaError("a face names a point that is not there")
            numbers[index] = b"%d" % (count + 1 + int(number))
    return b"/".join(numbers)
