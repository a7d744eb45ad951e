"""JPEG by libjpeg-turbo, decoded at a reduced size if less is needed.

At full size, the pixels are exactly those of Pillow.
"""

import io
import re
import warnings
from typing import NamedTuple

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.image.jpeg_scans import missing_scans

_START = b"\xff\xd8\xff"
_FILL, _APP1, _START_OF_SCAN = 0xFF, 0xE1, 0xDA
_EXIF_ORIENTATION = 0x0112
_DAMAGE = re.compile(r"Corrupt JPEG data|Premature end of JPEG|Inconsistent progression")
"""Warnings of libjpeg that mean damage. The others are about markers that do not affect pixels."""
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_END = b"\xff\xd9"


class JpegHeader(NamedTuple):
    """The stored size in pixels, and the EXIF orientation, 1 to 8."""

    height: int
    width: int
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """The height and width after the EXIF orientation is applied."""
        turned = self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)


def read_header(data: bytes | memoryview) -> JpegHeader | None:
    """Read a JPEG's header, or return None if libjpeg-turbo cannot turn it into RGB or grey."""
    import simplejpeg

    if data[:3] != _START:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colors not in ("YCbCr", "Gray"):
        return None
    return JpegHeader(height, width, _orientation(data))


def decode_jpeg(
    data: bytes | memoryview,
    header: JpegHeader,
    *,
    share: float = 1.0,
    channels: int = 3,
    strict: bool = True,
) -> np.ndarray | None:
    """Decode at the smallest of 1/8, 1/4, 1/2 and 1 of the size that is at least `share`.

    Only these scales have SIMD; a full decode is faster than the scales between them.

    Args:
        data: The bytes of the file.
        header: The result of `read_header`.
        share: The share of the height and width that is needed.
        channels: 1 (grey) or 3 (RGB).
        strict: Whether to reject data that are damaged or cut short.

    Returns:
        uint8 `[height, width, channels]`, upright, or None if libjpeg-turbo cannot decode it.

    Raises:
        MediaError: `strict` is set, and the data are damaged or cut short.
    """
    import simplejpeg

    parts = next((parts for parts in (8, 4, 2) if share * parts <= 1), 1)
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "gray" if channels == 1 else "rgb",
            min_height=-(-header.height // parts),
            min_width=-(-header.width // parts),
        )
    except ValueError as error:
        if strict:
            _refuse_damage(str(error), data)
        return None
    if strict and (missing := missing_scans(data)):
        raise MediaError(missing)
    return _upright(pixels, header.orientation)


def check_jpeg(data: bytes) -> None:
    """Raise MediaError if libjpeg-turbo finds damage in a JPEG of any colour space."""
    import simplejpeg

    try:
        _, _, colors, _ = simplejpeg.decode_jpeg_header(data)
        space = "CMYK" if colors in ("CMYK", "YCCK") else "rgb"
        simplejpeg.decode_jpeg(data, space, min_height=1, min_width=1)
    except ValueError as error:
        _refuse_damage(str(error), data)
        return
    if missing := missing_scans(data):
        raise MediaError(missing)


def _refuse_damage(warning: str, data: bytes | memoryview) -> None:
    """Raise MediaError for libjpeg's message, unless it is about zeros that pad the file."""
    extraneous = _EXTRANEOUS.search(warning)
    if extraneous and bytes(int(extraneous[1])) + _END in bytes(data):
        return
    if _DAMAGE.search(warning):
        what = "cut short" if warning.startswith("Premature end") else "damaged"
        raise MediaError(f"{what}: libjpeg says: {warning}")


def _orientation(data: bytes | memoryview) -> int:
    """Return the EXIF orientation, or 1 if there is none."""
    offset = 2
    while offset + 4 <= len(data) and data[offset] == _FILL:
        marker = data[offset + 1]
        if marker == _FILL:
            offset += 1
            continue
        if marker == _START_OF_SCAN:
            return 1
        if marker == _APP1:
            return _orientation_by_pillow(data)
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    return 1


def _orientation_by_pillow(data: bytes | memoryview) -> int:
    """Read the orientation from EXIF or XMP, as `ImageOps.exif_transpose` does."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=["JPEG", "MPO"]) as image:
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # malformed EXIF raises almost anything, and does not affect the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
