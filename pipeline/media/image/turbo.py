"""JPEG by libjpeg-turbo: decoded at a fraction of its size where less is wanted.

Full-size pixels are the very ones that Pillow gives.
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
"""Warnings of libjpeg's that tell of damage; others are of markers that say nothing of pixels."""
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_END = b"\xff\xd9"


class JpegHeader(NamedTuple):
    """Size in pixels, as stored, and the EXIF orientation, 1 to 8."""

    height: int
    width: int
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width once EXIF's orientation is applied."""
        turned = self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)


def read_header(data: bytes | memoryview) -> JpegHeader | None:
    """What a JPEG says of itself; None for what libjpeg-turbo does not turn into RGB or grey."""
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
    """Decode at 1/8, 1/4, 1/2 or the whole of the size, the least that is no less than `share`.

    Only these scales have SIMD; at those between, a full decode is faster.

    Returns:
        uint8 `[height, width, channels]`, upright; None where libjpeg-turbo doesn't decode it.

    Raises:
        MediaError: strict, and the data are damaged or cut short.
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
    """Raises MediaError where libjpeg-turbo finds damage in a JPEG of any colours."""
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


def _refuse_damage(said: str, data: bytes | memoryview) -> None:
    """Raises MediaError for what libjpeg said, unless it is of zeros that pad a file."""
    extraneous = _EXTRANEOUS.search(said)
    if extraneous and bytes(int(extraneous[1])) + _END in bytes(data):
        return
    if _DAMAGE.search(said):
        what = "cut short" if said.startswith("Premature end") else "damaged"
        raise MediaError(f"{what}: libjpeg says: {said}")


def _orientation(data: bytes | memoryview) -> int:
    """EXIF's orientation, 1 where none is said."""
    place = 2
    while place + 4 <= len(data) and data[place] == _FILL:
        marker = data[place + 1]
        if marker == _FILL:
            place += 1
            continue
        if marker == _START_OF_SCAN:
            return 1
        if marker == _APP1:
            return _orientation_by_pillow(data)
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 1


def _orientation_by_pillow(data: bytes | memoryview) -> int:
    """From EXIF or XMP, as `ImageOps.exif_transpose` finds it."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=["JPEG", "MPO"]) as image:
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # malformed EXIF raises almost anything, and says nothing of the pixels
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
