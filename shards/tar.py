"""Tar files whose bytes depend on nothing but their content.

POSIX ustar: every member is one 512-byte header (mtime, uid and gid 0, mode 0644, no owner names),
its payload, and zeros up to the next multiple of 512; two zero blocks end the archive. There are no
extended headers, so a member's header is always the block before its payload.
"""

import hashlib
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol

BLOCK_BYTES = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)
_NAME, _CHECKSUM = slice(0, 100), slice(148, 156)
"""Fields of a ustar header."""


class Writable(Protocol):
    """What a tar is written to."""

    def write(self, data: bytes, /) -> int: ...


class MemberSpan(NamedTuple):
    """Where a member's payload lies in its tar, in bytes."""

    name: str
    offset: int
    length: int


class SampleSpan(NamedTuple):
    """Where a sample lies in its tar, and the sha256 of its bytes there (see `sample_extent`)."""

    members: list[MemberSpan]
    sha256: str


def sample_extent(members: list[MemberSpan]) -> tuple[int, int]:
    """(first, one past last) byte of a sample in its tar: headers, payloads and padding.

    The extents of a shard's samples adjoin, so each byte before the end of the archive is one
    sample's own.
    """
    last = members[-1]
    return members[0].offset - BLOCK_BYTES, round_up(last.offset + last.length)


class TarWriter:
    """Streams samples into a tar, hashing on the way; memory is one member's."""

    def __init__(self, file: Writable) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._size = 0

    def add(self, key: str, members: Mapping[str, bytes]) -> SampleSpan:
        """Appends the files KEY.MEMBER, sorted by member."""
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
        """Ends the archive: its size in bytes and its sha256, 64 hexadecimal digits."""
        self._write(END_OF_ARCHIVE)
        return self._size, self._sha256.hexdigest()

    def _write(self, data: bytes) -> None:
        self._sha256.update(data)
        self._file.write(data)
        self._size += len(data)


def _header(name: str, length: int) -> bytes:
    """What tarfile writes; of one length, only the name and the checksum differ."""
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
    """A header without a name, and the sum of its bytes, those of the checksum taken as spaces."""
    info = tarfile.TarInfo("")
    info.size = length
    header = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    return header, sum(header) - sum(header[_CHECKSUM]) + sum(b" " * 8)


def round_up(num_bytes: int) -> int:
    """The next multiple of a tar's block, or the number itself."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
