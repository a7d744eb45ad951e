"""Check images that decoders accept although their end is missing or a checksum is wrong."""

import struct
import zlib
from collections.abc import Callable

from pipeline.media.errors import MediaError

_PNG = b"\x89PNG\r\n\x1a\n"
_GIF = (b"GIF87a", b"GIF89a")
_GIF_EXTENSION, _GIF_IMAGE, _GIF_TRAILER = 0x21, 0x2C, 0x3B
_QOI_END = bytes(7) + b"\1"
_PCX_PALETTE_BYTES = 769


def check_whole_image(data: bytes) -> None:
    """Reject a PNG, GIF, QOI or PCX that is cut short, and a PNG with a wrong checksum.

    Raises:
        MediaError: The image is cut short or damaged; the message says how.
    """
    checks: tuple[tuple[bool, Callable[[bytes], str | None]], ...] = (
        (data.startswith(_PNG), _png_damage),
        (data.startswith(_GIF), gif_damage),
        (data.startswith(b"qoif"), _qoi_damage),
        (data[:1] == b"\x0a" and len(data) > 128, _pcx_damage),
    )
    for fits, damage in checks:
        if fits and (reason := damage(data)):
            raise MediaError(reason)


def _png_damage(data: bytes) -> str | None:
    """PNG: a chunk is a length, a name, the content and its CRC-32. The last one is IEND."""
    offset, number = len(_PNG), 0
    while offset + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, offset)
        end = offset + 12 + size
        name = ascii(data[offset + 4 : offset + 8].decode("latin-1"))
        number += 1
        if end > len(data):
            return f"cut short: its chunk {number}, {name}, lacks {end - len(data)} bytes"
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[offset + 4 : end - 4]) != checksum:
            return f"damaged: the checksum of its chunk {number}, {name}, is wrong"
        if data[offset + 4 : offset + 8] == b"IEND":
            return None
        offset = end
    return f"cut short: it ends after {number} chunks without IEND"


def gif_damage(data: bytes, *, is_film: bool = False) -> str | None:
    """Return what is missing in a GIF, or None. Its blocks are extensions and images, then an end.

    Args:
        data: The bytes of the file.
        is_film: Whether all images are needed. If so, the end mark must be present; some programs
            that write single images omit it.
    """
    if len(data) < 13:
        return "cut short: its header is not whole"
    offset = 13 + _gif_colours(data[10])
    images = 0
    while offset < len(data):
        kind = data[offset]
        if kind == _GIF_TRAILER:
            return None
        if kind == 0:  # some programs write zeros between blocks
            offset += 1
            continue
        if kind == _GIF_EXTENSION:
            offset += 2
        elif kind == _GIF_IMAGE and offset + 10 <= len(data):
            offset += 11 + _gif_colours(data[offset + 9])
            images += 1
        elif kind != _GIF_IMAGE:
            return f"damaged: after its {images} first images there is no block of a GIF"
        while offset < len(data) and data[offset]:
            offset += 1 + data[offset]
        offset += 1
    if images and offset == len(data) and not is_film:
        return None
    return f"cut short: it ends in or after its image {images} without a GIF's trailer"


def _gif_colours(flags: int) -> int:
    """Return the bytes of the colour table that the flags announce."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _qoi_damage(data: bytes) -> str | None:
    return None if _QOI_END in data[-64:] else "cut short: the mark of a QOI's end is missing"


def _pcx_damage(data: bytes) -> str | None:
    """PCX version 5: a palette of 256 colours at the end, after the byte 12."""
    version, coding, bits, planes = data[1], data[2], data[3], data[65]
    if (version, bits, planes) != (5, 8, 1) or coding != 1:
        return None
    if data[-_PCX_PALETTE_BYTES:][:1] == b"\x0c":
        return None
    return "cut short: its palette of 256 colours is missing"
