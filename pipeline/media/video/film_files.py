"""Find out whether a film's file is cut short, from lengths or end marks of its container."""

import re
import struct

from pipeline.media.audio.ogg import damage_of
from pipeline.media.errors import MediaError
from pipeline.media.image.files import gif_damage

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEADER_BYTES, _ASF_BROADCAST = 30, 1
_BOX = re.compile(rb"[ -~\xa9]{4}")
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof")
_TS_BYTES = (188, 192, 204)
"""Packet sizes of a transport stream: plain, with a time before, with a checksum after."""
_PS_START = b"\0\0\1\xba"
_PS_MOST_BYTES = 6 + 2**16
"""The largest packet of a program stream that states its length."""
_RIFF_UNKNOWN = (0, 2**32 - 1)
_RIFF_ROUNDING = 1
"""By how many bytes the length of a RIFF file may be too large: some count padding twice."""


def check_whole_film(data: bytes) -> None:
    """Reject a film whose container declares more data than the file has, or has damaged pages.

    Raises:
        MediaError: The film is cut short or damaged; the message says how.
    """
    reason: str | None = None
    if data.startswith(b"OggS"):
        reason = damage_of(data)
    elif data[:6] in (b"GIF87a", b"GIF89a"):
        reason = gif_damage(data, is_film=True)
    elif data.startswith(_EBML):
        reason = _matroska_shortage(data)
    elif data[4:8] in _FIRST_BOXES:
        reason = _boxes_shortage(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        reason = _avi_shortage(data)
    elif data.startswith(_ASF):
        reason = _asf_shortage(data)
    elif data.startswith(_PS_START):
        reason = _program_shortage(data)
    elif data.startswith(b"YUV4MPEG2 "):
        reason = _yuv_shortage(data)
    elif packet_bytes := _transport_packet_bytes(data):
        rest = len(data) % packet_bytes
        reason = f"cut short: its last packet has {rest} of {packet_bytes} bytes" if rest else None
    if reason is not None:
        raise MediaError(reason)


def is_open_ended(data: bytes) -> bool:
    """Return whether a film's lengths are unknown, as in an AVI that was written to a pipe."""
    size = int.from_bytes(data[4:8], "little")
    return data.startswith(b"RIFF") and data[8:12] == b"AVI " and size in _RIFF_UNKNOWN


def _bytes_short(found: int, declared: int) -> str:
    return f"cut short: {found} of {declared} bytes are there"


def _matroska_shortage(data: bytes) -> str | None:
    """Matroska and WebM: a segment states its size, or that it is unknown, as in streams."""
    header_size, start = _vint(data, len(_EBML))
    offset = start + (header_size or 0)
    if data[offset : offset + 4] != _SEGMENT:
        return None
    size, start = _vint(data, offset + 4)
    if size is None or start + size <= len(data):
        return None
    return _bytes_short(len(data), start + size)


def _vint(data: bytes, offset: int) -> tuple[int | None, int]:
    """Read a number of EBML and the offset of its end. The number is None if it is unknown.

    The number starts with zero bits and a one, which give its length, followed by its value.
    """
    if offset >= len(data) or not data[offset]:
        return None, offset
    length = 9 - data[offset].bit_length()
    value = int.from_bytes(data[offset : offset + length], "big") & (1 << 7 * length) - 1
    return (None if value == (1 << 7 * length) - 1 else value), offset + length


def _boxes_shortage(data: bytes) -> str | None:
    """MP4 and QuickTime: boxes state their sizes. A box of size 0 continues to the end."""
    offset = 0
    while offset + 8 <= len(data) and _BOX.fullmatch(data, offset + 4, offset + 8):
        (size,) = struct.unpack_from(">I", data, offset)
        if size == 1 and offset + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, offset + 8)
        elif size == 0:
            return None
        if size < 8:
            return None
        if offset + size > len(data):
            return _bytes_short(len(data), offset + size)
        offset += size
    return None


def _avi_shortage(data: bytes) -> str | None:
    """AVI: a RIFF file, or several RIFF files in sequence if it is long."""
    offset = 0
    while data[offset : offset + 4] == b"RIFF":
        size = int.from_bytes(data[offset + 4 : offset + 8], "little")
        end = offset + 8 + size
        if size in _RIFF_UNKNOWN:
            return None
        if end > len(data) + _RIFF_ROUNDING:
            return _bytes_short(len(data), end)
        offset = end + size % 2
    return None


def _asf_shortage(data: bytes) -> str | None:
    """ASF and WMV: the properties contain the file's size, unless it is a broadcast."""
    offset = data.find(_ASF_PROPERTIES, 0, 2**16)
    if offset < 0 or offset + 92 > len(data):
        return None
    (size,) = struct.unpack_from("<Q", data, offset + 40)
    (flags,) = struct.unpack_from("<I", data, offset + 88)
    if flags & _ASF_BROADCAST or size <= len(data):
        return None
    return _bytes_short(len(data), size)


def _program_shortage(data: bytes) -> str | None:
    """MPEG program streams: the last packet states its length, or 0 if it is unknown."""
    offset, least = len(data), max(0, len(data) - _PS_MOST_BYTES)
    while (offset := data.rfind(b"\0\0\1", least, offset)) >= 0:
        # Codes from 0xBC on occur only in packet headers; lower codes also occur in pictures.
        if offset + 6 <= len(data) and data[offset + 3] >= 0xBC:
            size = int.from_bytes(data[offset + 4 : offset + 6], "big")
            lacking = offset + 6 + size - len(data) if size else 0
            return f"cut short: its last packet lacks {lacking} bytes" if lacking > 0 else None
    return None


def _yuv_shortage(data: bytes) -> str | None:
    """YUV4MPEG: frames of one size, each after the word FRAME."""
    first = data.find(b"\nFRAME") + 1
    second = data.find(b"FRAME", first + 5)
    if not first or data[first + 5 : first + 6] != b"\n" or second < 0:
        return None
        # Pixels may also spell FRAME. Then the size is wrong, and no frame follows there.
    size = second - first
    if data[second + size : second + size + 5] not in (b"FRAME", b""):
        return None
    rest = (len(data) - first) % size
    return f"cut short: its last frame has {rest} of {size} bytes" if rest else None


def _transport_packet_bytes(data: bytes) -> int | None:
    """Return the packet size of a transport stream, whose packets begin with 0x47, else None."""
    for size in _TS_BYTES:
        first = size - 188 if size == 192 else 0
        if len(data) >= 5 * size and data[first : first + 5 * size : size] == b"G" * 5:
            return size
    return None
