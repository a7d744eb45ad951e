"""Containers of plain sound: where the samples lie, and how many there are.

WAV (RIFF, RIFX, RF64), Wave64, AIFF, AU and CAF declare the length of their samples. A file that
was cut short has fewer. A recorder that writes to a pipe does not know the length and declares a
placeholder.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PLACEHOLDERS = (range(2**31 - 2**16, 2**31 + 2**16), range(2**32 - 2**16, 2**32))
"""The lengths that recorders write when they do not know one.

They are close to 2 GiB (SoX, arecord) or 4 GiB (FFmpeg).
"""
_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_FRAMED_TAGS = (1, 3, 6, 7, 0xFFFE)
"""The WAV format tags whose blocks are frames: PCM, float, A-law, µ-law and extensible."""
_AU_SAMPLE_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}


@dataclass(frozen=True)
class Samples:
    """Where a file holds its samples.

    Attributes:
        start: The offset of the first byte of the samples.
        declared: The number of bytes that the header declares; None if it does not know it.
        found: The number of bytes from `start` to the end of the file.
        frame_bytes: The number of bytes of one sample of every channel; 0 if the samples are coded
            in blocks.
        sizes: Offsets in the header, and the bytes to write there so that a file of unknown length
            declares its length.
    """

    start: int
    declared: int | None
    found: int
    frame_bytes: int
    sizes: tuple[tuple[int, bytes], ...]

    @property
    def shortage(self) -> str | None:
        """The reason that says what is missing; None if nothing is."""
        if self.declared is None or self.found >= self.declared:
            return None
        if self.frame_bytes > 0:
            found, declared = self.found // self.frame_bytes, self.declared // self.frame_bytes
            return f"cut short: {found} of {declared} frames are there"
        return f"cut short: {self.found} of {self.declared} bytes of sound are there"

    def with_sizes(self, data: bytes) -> bytes:
        """Return the file with its lengths written into its header."""
        known = bytearray(data)
        for offset, size in self.sizes:
            known[offset : offset + len(size)] = size
        return bytes(known)


def find_samples(data: bytes) -> Samples | None:
    """Return where the samples of a file lie; None for other containers and damaged headers."""
    try:
        match data[:4]:
            case b"RIFF" | b"RIFX" | b"RF64" if data[8:12] == b"WAVE":
                return _in_wav(data)
            case b"FORM" if data[8:12] in (b"AIFF", b"AIFC"):
                return _in_aiff(data)
            case b".snd" | b"dns.":
                return _in_au(data)
            case b"caff":
                return _in_caf(data)
            case b"riff" if data[:16] == _W64_RIFF:
                return _in_w64(data)
    except struct.error:  # the header itself is cut short
        return None
    return None


def _is_unknown(size: int) -> bool:
    return any(size in each for each in _PLACEHOLDERS)


def _chunks(data: bytes, offset: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, the offset of the content and the size of IFF chunks.

    Each chunk begins at an even byte.
    """
    while offset + 8 <= len(data):
        (size,) = struct.unpack_from(f"{order}I", data, offset + 4)
        yield data[offset : offset + 4], offset + 8, size
        offset += 8 + size + size % 2


def _in_wav(data: bytes) -> Samples | None:
    order = ">" if data[:4] == b"RIFX" else "<"
    frame_bytes, long_sizes = 0, 0
    for name, offset, size in _chunks(data, 12, order):
        if name == b"fmt ":
            tag, _, _, _, block = struct.unpack_from(f"{order}HHIIH", data, offset)
            frame_bytes = block if tag in _FRAMED_TAGS else 0
        elif name == b"ds64":
            long_sizes = offset
        elif name == b"data":
            found = len(data) - offset
            if long_sizes:
                return _in_rf64(data, offset, long_sizes, frame_bytes)
            sizes = (
                (4, struct.pack(f"{order}I", min(len(data) - 8, 2**32 - 1))),
                (offset - 4, struct.pack(f"{order}I", min(found, 2**32 - 1))),
            )
            unknown = _is_unknown(size) or (
                size == 0 and found > 0 and not _is_followed(data, offset, order)
            )
            declared = None if unknown and size != found else size
            return Samples(offset, declared, found, frame_bytes, sizes)
    return None


def _is_followed(data: bytes, offset: int, order: str) -> bool:
    """Return whether only whole chunks with printable names lie from here to the end."""
    end = offset
    for name, start, size in _chunks(data, offset, order):
        if not re.fullmatch(rb"[ -~]{4}", name):
            return False
        end = start + size
    return end > offset and end + end % 2 >= len(data) >= end


def _in_rf64(data: bytes, offset: int, long_sizes: int, frame_bytes: int) -> Samples:
    found = len(data) - offset
    riff_size, size, frames = struct.unpack_from("<QQQ", data, long_sizes)
    unknown = size >= 2**63 or (size == 0 and riff_size + 8 != len(data) and found > 0)
    frames = found // frame_bytes if frame_bytes else frames
    size_field = (long_sizes, struct.pack("<QQQ", len(data) - 8, found, frames))
    return Samples(offset, None if unknown else size, found, frame_bytes, (size_field,))


def _in_w64(data: bytes) -> Samples | None:
    offset, frame_bytes = 40, 0
    while offset + 24 <= len(data):
        name = data[offset : offset + 4] if data[offset + 4 : offset + 16] == _W64_TAIL else b""
        (size,) = struct.unpack_from("<Q", data, offset + 16)
        start = offset + 24
        if name == b"fmt ":
            tag, _, _, _, block = struct.unpack_from("<HHIIH", data, start)
            frame_bytes = block if tag in _FRAMED_TAGS else 0
        elif name == b"data":
            found = len(data) - start
            unknown = size >= 2**62 or (size <= 24 and found > 0)
            sizes = (
                (16, struct.pack("<Q", len(data))),
                (offset + 16, struct.pack("<Q", 24 + found)),
            )
            return Samples(start, None if unknown else size - 24, found, frame_bytes, sizes)
        if size < 24:
            return None
        offset += size + -size % 8
    return None


def _in_aiff(data: bytes) -> Samples | None:
    frame_bytes, frames = 0, 0
    for name, offset, size in _chunks(data, 12, ">"):
        if name == b"COMM":
            channels, frames, bits = struct.unpack_from(">HIH", data, offset)
            coded = data[8:12] == b"AIFC" and data[offset + 18 : offset + 22] not in (
                b"NONE", b"sowt", b"twos", b"fl32", b"fl64", b"FL32", b"FL64", b"raw ",
            )  # fmt: skip
            frame_bytes = 0 if coded else channels * (-(-bits // 8))
        elif name == b"SSND":
            (skipped,) = struct.unpack_from(">I", data, offset)
            found = max(0, len(data) - offset - 8 - skipped)
            # FFmpeg writes SSND of size 0 to a pipe. libsndfile reads it to the end of the file.
            declared = None if size == 0 or _is_unknown(size) else max(0, size - 8 - skipped)
            if declared is not None and not _is_unknown(frames):
                declared = max(declared, frames * frame_bytes)
            return Samples(offset + 8 + skipped, declared, found, frame_bytes, ())
    return None


def _in_au(data: bytes) -> Samples:
    order = ">" if data[:4] == b".snd" else "<"
    start, size, encoding, _, channels = struct.unpack_from(f"{order}5I", data, 4)
    found = max(0, len(data) - start)
    frame_bytes = _AU_SAMPLE_BYTES.get(encoding, 0) * channels
    unknown = _is_unknown(size) or (size == 0 and found > 0)
    size_field = (8, struct.pack(f"{order}I", min(found, 2**32 - 1)))
    return Samples(start, None if unknown else size, found, frame_bytes, (size_field,))


def _in_caf(data: bytes) -> Samples | None:
    offset, frame_bytes = 8, 0
    while offset + 12 <= len(data):
        name = data[offset : offset + 4]
        (size,) = struct.unpack_from(">q", data, offset + 4)
        start = offset + 12
        if name == b"desc":
            packet_bytes, packet_frames = struct.unpack_from(">II", data, start + 16)
            frame_bytes = packet_bytes if packet_frames == 1 else 0
        elif name == b"data":
            found = max(0, len(data) - start - 4)  # without the edit count
            sizes = ((offset + 4, struct.pack(">q", 4 + found)),)
            return Samples(start + 4, None if size < 0 else size - 4, found, frame_bytes, sizes)
        if size < 0:
            return None
        offset = start + size
    return None
