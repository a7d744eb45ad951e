"""Tar files whose bytes depend only on their content.

The format is POSIX ustar. Every member is a header of 512 bytes, its payload, and zeros up to the
next multiple of 512. In a header, mtime, uid and gid are 0, the mode is 0644, and there are no
owner names. Two zero blocks end the archive. There are no extended headers, so the header of a
member is always the block before its payload.
"""

import hashlib
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol

BLOCK_BYTES = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)
_NAME, _CHECKSUM = slice(0, 100), slice(148, 156)
"""The fields of a ustar header that differ between members of the same length."""


class Writable(Protocol):
    """A file that a tar can be written to."""

    def write(self, data: bytes, /) -> int: ...


class MemberSpan(NamedTuple):
    """The name, offset and length of a member's payload in its tar, in bytes."""

    name: str
    offset: int
    length: int


class SampleSpan(NamedTuple):
    """The members of a sample in its tar, and the sha256 of its extent (see `sample_extent`)."""

    members: list[MemberSpan]
    sha256: str


def sample_extent(members: list[MemberSpan]) -> tuple[int, int]:
    """Return the range [start, stop) of a sample in its tar: headers, payloads and padding.

    The extents of a shard's samples are adjacent. So each byte before the end of the archive
    belongs to exactly one sample.
    """
    last = members[-1]
    return members[0].offset - BLOCK_BYTES, round_up(last.offset + last.length)


class TarWriter:
    """Write samples into a tar and compute hashes on the way. Only one member is in memory."""

    def __init__(self, file: Writable) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._size = 0

    def add(self, key: str, members: Mapping[str, bytes]) -> SampleSpan:
        """Append the files KEY.MEMBER, sorted by member."""
        spans = []
        extent = hashlib.sha256()
        for member in sorted(members):
            payload = members[member]
            header = _header(f"{key}.{member}", len(payload))
            spans.append(MemberSpan(member, self._size + len(header), len(payload)))
            padding = bytes(round_up(len(payload)) - len(payload))
            for piece in (header, payload, padding):
                extent.update(piece)
                self._write(piece)
        return SampleSpan(spans, extent.hexdigest())

    def finish(self) -> tuple[int, str]:
        """End the archive. Return its size in bytes and its sha256, 64 hexadecimal digits."""
        self._write(END_OF_ARCHIVE)
        return self._size, self._sha256.hexdigest()

    def _write(self, data: bytes) -> None:
        self._sha256.update(data)
        self._file.write(data)
        self._size += len(data)


def _header(name: str, length: int) -> bytes:
    """Return the same header as tarfile. For one length, only name and checksum differ."""
    nameless, checksum = _nameless_header(length)
    encoded = name.encode()
    assert len(encoded) <= _NAME.stop
    checksum += sum(encoded)
    return b"".join(
        (
            encoded.ljust(_NAME.stop, b"\0"),
            nameless[_NAME.stop : _CHECKSUM.start],
            b"%06o\0 " % checksum,
            nameless[_CHECKSUM.stop :],
        )
    )


@lru_cache(maxsize=256)
def _nameless_header(length: int) -> tuple[bytes, int]:
    """Return a header without a name, and the sum of its bytes with a checksum of spaces."""
    info = tarfile.TarInfo("")
    info.size = length
    header = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    return header, sum(header) - sum(header[_CHECKSUM]) + sum(b" " * 8)


def round_up(num_bytes: int) -> int:
    """Round up to a multiple of 512, the size of a tar's block."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
