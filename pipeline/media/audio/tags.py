"""Tags before and after the content of files: ID3, APE and Lyrics3."""

import re

ID3V1_BYTES = 128
APE_BYTES = 32
"""The size of an APE tag's footer, and of its header if it has one."""
_APE_HAS_HEADER = 0x8000_0000
_APE_IS_HEADER = 0x2000_0000
_ZEROS = re.compile(rb"\0*")


def after_id3(data: bytes, offset: int = 0) -> int:
    """Return the offset where the ID3v2 tags that begin here end.

    Each tag declares its size, with 7 bits a byte.
    """
    while data[offset : offset + 3] == b"ID3" and len(data) >= offset + 10:
        a, b, c, d = data[offset + 6 : offset + 10]
        footer = 10 if data[offset + 5] & 0x10 else 0
        offset += 10 + footer + (a << 21 | b << 14 | c << 7 | d)
    return min(offset, len(data))


def without_tags(data: bytes) -> bytes:
    """Return a file without the ID3v2 tags before its container, if it has a container.

    libsndfile skips such tags, but then it misses as many bytes at the end of a file in memory.
    """
    start = after_id3(data)
    is_mpeg = data[start : start + 1] in (b"\xff", b"\0", b"")
    return data if start == 0 or is_mpeg else data[start:]


def after_tag(data: bytes, offset: int) -> int:
    """Return the offset where the tag or the run of zeros that begins here ends.

    If none begins here, return `offset`.
    """
    if data[offset : offset + 3] == b"ID3":
        return after_id3(data, offset)
    if data[offset : offset + 3] == b"TAG":
        return min(offset + ID3V1_BYTES, len(data))
    if data[offset : offset + 8] == b"APETAGEX":
        size = int.from_bytes(data[offset + 12 : offset + 16], "little")
        flags = int.from_bytes(data[offset + 20 : offset + 24], "little")
        return min(offset + APE_BYTES + (size if flags & _APE_IS_HEADER else 0), len(data))
    zeros = _ZEROS.match(data, offset)
    assert zeros is not None
    return zeros.end()


def before_tags(data: bytes) -> int:
    """Return the offset where the tags at the end of a file begin: its length if it has none."""
    end = len(data)
    if data[end - ID3V1_BYTES : end - ID3V1_BYTES + 3] == b"TAG":
        end -= ID3V1_BYTES
    if data[end - 9 : end] == b"LYRICS200" and data[end - 15 : end - 9].isdigit():
        end -= 15 + int(data[end - 15 : end - 9])
    if data[end - APE_BYTES : end - APE_BYTES + 8] == b"APETAGEX":
        footer = data[end - APE_BYTES : end]
        flags = int.from_bytes(footer[20:24], "little")
        end -= int.from_bytes(footer[12:16], "little")
        end -= APE_BYTES if flags & _APE_HAS_HEADER else 0
    return max(end, 0)
