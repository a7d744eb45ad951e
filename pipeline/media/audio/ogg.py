"""Ogg pages (RFC 3533, 6): which recordings a file holds, and whether its pages are whole."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_MAGIC = b"OggS"
_HEADER_BYTES = 27
_BEGINS, _ENDS = 2, 4
"""The flag of a page that begins a stream, and the flag of a page that ends one."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def recordings_of(data: bytes) -> list[bytes]:
    """Split a chain into its recordings. Each recording has its own headers.

    Streams that run in parallel begin together, before the next page of any of them.
    """
    starts, has_begun = [], False
    for page in _pages(data):
        if page.begins and not has_begun:
            starts.append(page.start)
        has_begun = page.begins
    ends = [*starts[1:], len(data)]
    return [data[start:end] for start, end in zip([0, *starts[1:]], ends, strict=False)] or [data]


def damage_of(data: bytes) -> str | None:
    """Return the reason that says what is missing or damaged in the pages; None if nothing is.

    Each page has a checksum and a number, and the last page of each stream has a flag. Bytes after
    the last page of all streams are ignored.
    """
    numbers: dict[int, int] = {}
    running: set[int] = set()
    end, count = 0, 0
    for page in _pages(data):
        if page.start != end:
            return f"damaged: {page.start - end} bytes after its {count} first pages are no page"
        if page.end > len(data):
            return f"cut short: its page {count + 1} lacks {page.end - len(data)} bytes"
        if page.checksum != _checksum(data[page.start : page.end]):
            return f"damaged: the checksum of its page {count + 1} is wrong"
        if page.begins:
            numbers[page.serial] = page.number
            running.add(page.serial)
        elif page.serial in numbers and page.number != numbers[page.serial] + 1:
            missing = page.number - numbers[page.serial] - 1
            return f"damaged: {missing} pages are missing before its page {count + 1}"
        numbers[page.serial] = page.number
        if page.ends:
            running.discard(page.serial)
        end, count = page.end, count + 1
    if running:
        return f"cut short: no page after the first {count} says that the recording ends"
    return None


@dataclass(frozen=True)
class _Page:
    start: int
    end: int
    flags: int
    serial: int
    number: int
    checksum: int

    @property
    def begins(self) -> bool:
        return bool(self.flags & _BEGINS)

    @property
    def ends(self) -> bool:
        return bool(self.flags & _ENDS)


def _pages(data: bytes) -> Iterator[_Page]:
    offset = data.find(_MAGIC)
    while 0 <= offset <= len(data) - _HEADER_BYTES:
        flags, _, serial, number, checksum, segments = struct.unpack_from(
            "<BqIIIB", data, offset + 5
        )
        behind = offset + _HEADER_BYTES + segments
        end = behind + sum(data[offset + _HEADER_BYTES : behind])
        yield _Page(offset, end, flags, serial, number, checksum)
        offset = data.find(_MAGIC, end)


def _checksum(page: bytes) -> int:
    """Return a page's CRC-32, computed with its own checksum field set to zero.

    The polynomial is zlib's, not reflected, and the initial value is 0.
    """
    page = page[:22] + bytes(4) + page[26:]
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{reflected:032b}"[::-1], 2)
