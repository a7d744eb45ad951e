"""Compare the strips or tiles that a TIFF's directory declares with those in the file."""

import zlib
from typing import Any

from pipeline.media.errors import MediaError
from pipeline.media.image.turbo import check_jpeg

_UNCOMPRESSED, _JPEG, _DEFLATE = 1, 7, (8, 32946)
_AT_ONCE = 2**20
"""The bytes that are decompressed in one step."""
_WIDTH, _LENGTH, _COMPRESSION = 256, 257, 259
_STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANES = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_BYTES, _JPEG_TABLES = 322, 323, 324, 325, 347


def check_whole_tiff(image: Any, data: bytes) -> None:
    """Reject a TIFF that lacks strips or tiles, or that has damaged Deflate or JPEG data.

    Args:
        image: Pillow's image, just opened.
        data: The bytes of the file.

    Raises:
        MediaError: The image is cut short or damaged; the message says how.
    """
    tags = image.tag_v2
    in_tiles = _TILES in tags
    offsets = _numbers(tags, _TILES if in_tiles else _STRIPS)
    sizes = _numbers(tags, _TILE_BYTES if in_tiles else _STRIP_BYTES)
    what = "tiles" if in_tiles else "strips"
    num_parts = _num_parts(tags, in_tiles)
    if len(offsets) < num_parts:
        raise MediaError(f"cut short: {len(offsets)} of {num_parts} {what} are there")
    if tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED or len(sizes) != len(offsets):
        return  # Pillow computes the sizes from the pixels and ignores declared ones
    there = sum(offset + size <= len(data) for offset, size in zip(offsets, sizes, strict=True))
    if there < len(offsets):
        raise MediaError(f"cut short: {there} of {len(offsets)} {what} are there")
    if tags.get(_COMPRESSION) in _DEFLATE:
        most = 8 * image.width * image.height + _AT_ONCE
        for number, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
            if not _is_sound_deflate(data[offset : offset + size], most):
                raise MediaError(f"damaged: its {what[:-1]} {number + 1} of {len(offsets)}")
    if tags.get(_COMPRESSION) == _JPEG:
        tables = bytes(tags.get(_JPEG_TABLES, b"\xff\xd8\xff\xd9"))
        for offset, size in zip(offsets, sizes, strict=True):
            # An abbreviated file: the tables, then the image without its own start marker.
            check_jpeg(tables[:-2] + data[offset + 2 : offset + size])


def _is_sound_deflate(content: bytes, most: int) -> bool:
    """Return whether zlib's data are valid up to their checksum, which libtiff may not reach.

    Args:
        content: The data of a strip or tile.
        most: The most bytes to decompress. Bytes beyond the image's size do not matter.
    """
    stream, num_bytes = zlib.decompressobj(), 0
    try:
        while not stream.eof and num_bytes < most:
            piece = stream.decompress(content, _AT_ONCE)
            content = stream.unconsumed_tail
            num_bytes += len(piece)
            if not piece and not content:
                return stream.eof
    except zlib.error:
        return False
    return True


def _numbers(tags: Any, tag: int) -> tuple[int, ...]:
    value = tags.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def _num_parts(tags: Any, in_tiles: bool) -> int:
    """Return the number of strips or tiles that the image's size requires."""
    width, length = tags.get(_WIDTH, 0), tags.get(_LENGTH, 0)
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANES, 1) == 2 else 1
    if in_tiles:
        across, down = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
        return -(-width // across) * -(-length // down) * planes if across and down else 0
    rows = tags.get(_ROWS) or length
    return -(-length // min(rows, length)) * planes if length else 0
