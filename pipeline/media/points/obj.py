"""OBJ files as trimesh reads them: what it passes over is put right, or refused."""

import re

from pipeline.media.errors import MediaError

# Tabs, indented lines, lines that end in CR alone, comments behind a statement, lines that go on
# after a backslash, faces that count from their own place back, and the old name of faces: trimesh
# passes them over, or takes them for others.
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
    """The file as trimesh reads it.

    Raises:
        MediaError: a face names a point that is not there, or a free-form surface would be left
            out; strict, the last line is not whole, or bytes are no text's.
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
    """MeshLab and others write how many points and faces follow, in remarks before them."""
    for name, said, line in _COUNTS:
        declared = said.findall(data, 0, _HEAD_BYTES)
        if len(declared) == 1 and (found := len(line.findall(data))) < int(declared[0]):
            raise MediaError(f"cut short: {found} of {int(declared[0])} {name} are there")


def _rewritten(data: bytes) -> bytes:
    """The lines as trimesh reads them, their faces' numbers counted from the start."""
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
    """The words of each line: comments behind geometry left out, lines that go on joined."""
    statements: list[list[bytes]] = []
    begun: list[bytes] = []
    for line in data.splitlines():
        words = line.split()
        if not begun and words and words[0].startswith(b"#"):
            continue  # a backslash at its end, as of a folder's name, is no more than remark
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
    """A face's corner, `v/vt/vn`; negative numbers count back from what was read so far."""
    numbers = corner.split(b"/")
    for place, (number, count) in enumerate(zip(numbers, counts, strict=False)):
        if number.startswith(b"-"):
            if -int(number) > count:
                raise MediaError("a face names a point that is not there")
            numbers[place] = b"%d" % (count + 1 + int(number))
    return b"/".join(numbers)
