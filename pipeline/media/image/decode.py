"""Images: any format that Pillow itself reads, to a uint8 array of one fixed size."""

import io
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from perceiver_model.config_checks import Count, config_dataclass
from pipeline.media.format import MediaFormat
from pipeline.media.image.pillow import MAX_PIXELS, check_size, decode_pixels
from pipeline.media.image.resample import resize
from pipeline.media.image.turbo import decode_jpeg, read_header

FIELD = "image"
# Twice Image.MAX_IMAGE_PIXELS. Pillow rejects larger images as decompression bombs.
PILLOW_MAX_PIXELS = 178_956_970
_DETAIL = 2.0
"""A JPEG is decoded to at least this many times the target size along each side. The rest is left
to the resizing filter."""


@config_dataclass
class ImageFormat(MediaFormat):
    """The format that every image is brought to.

    Attributes:
        height: The height in pixels.
        width: The width in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: `crop` scales the shorter side and cuts the centre. `pad` scales the longer side and
            fills the rest with black. `stretch` ignores the aspect ratio.
        encoding: How shards store the pixels: `raw` (uint8 `.npy`) or `jpeg`.
        jpeg_quality: The quality for `jpeg`, 1 to 100.
        max_pixels: The most pixels in an image. Larger images are rejected before decoding.
    """

    modality: ClassVar[str] = "image"

    height: Count
    width: Count
    channels: Literal[1, 3] = 3
    resize: Literal["crop", "pad", "stretch"] = "crop"
    encoding: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 92
    max_pixels: Annotated[int, Field(ge=1, le=PILLOW_MAX_PIXELS)] = MAX_PIXELS

    @property
    def member(self) -> str:
        """The name of the shard member that holds the pixels."""
        return f"{FIELD}.npy" if self.encoding == "raw" else f"{FIELD}.jpg"


def decode_image(data: bytes, fmt: ImageFormat, *, strict: bool = True) -> np.ndarray:
    """Decode one encoded image.

    The EXIF orientation is applied. Alpha is blended with white, 16-bit grey is scaled to 8 bits,
    and CMYK and palettes become RGB. Only the first frame of an animation is used. libjpeg-turbo
    decodes JPEGs, at a reduced size if that is still at least twice the target size.

    Args:
        data: The bytes of the file.
        fmt: The size and channels of the result.
        strict: Whether to also reject an image that its decoder accepts with a warning, that has a
            wrong checksum, or that lacks its end.

    Returns:
        uint8 `[height, width, channels]`.

    Raises:
        MediaError: The bytes are not an image, are cut short or damaged, or exceed `max_pixels`.
    """
    header = read_header(data)
    pixels = None
    if header is not None:
        check_size(header.height, header.width, fmt.max_pixels)
        size = header.upright_size
        share = _DETAIL * _scale(*size, fmt)
        pixels = decode_jpeg(data, header, share=share, channels=fmt.channels, strict=strict)
    if pixels is None:
        pixels = decode_pixels(
            data, channels=fmt.channels, max_pixels=fmt.max_pixels, strict=strict
        )
        size = pixels.shape[:2]
    return fit_pixels(pixels, fmt, *size)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encode uint8 `[height, width, channels]` as JPEG. `quality` is 1 to 100."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
        buffer, "JPEG", quality=quality
    )
    return buffer.getvalue()


class PictureFormat(Protocol):
    """The target size of images and film frames in pixels, and how they are brought to it."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def resize(self) -> Literal["crop", "pad", "stretch"]: ...


def _scale(height: float, width: float, fmt: PictureFormat) -> float:
    """Return the target pixels per source pixel, along the side that `resize` scales to fit."""
    down, across = fmt.height / height, fmt.width / width
    return min(down, across) if fmt.resize == "pad" else max(down, across)


def fit_pixels(pixels: np.ndarray, fmt: PictureFormat, height: float, width: float) -> np.ndarray:
    """Bring an image to the format's size, as its `resize` says.

    Args:
        pixels: uint8 `[rows, columns, channels]`.
        fmt: The target size.
        height: The height at which the image is to be seen; `pixels` may have fewer rows.
        width: The width at which the image is to be seen; `pixels` may have fewer columns.

    Returns:
        uint8 `[fmt.height, fmt.width, channels]`.
    """
    rows, columns, channels = pixels.shape
    if (rows, columns) == (fmt.height, fmt.width) == (height, width):
        return pixels
    if fmt.resize == "stretch":
        return resize(pixels, fmt.height, fmt.width)
    scale = _scale(height, width, fmt)
    if fmt.resize == "crop":
        box_height, box_width = fmt.height / scale, fmt.width / scale
        down, across = rows / height, columns / width
        left, top = max(0.0, (width - box_width) / 2), max(0.0, (height - box_height) / 2)
        box = (left * across, top * down, box_width * across, box_height * down)
        return resize(pixels, fmt.height, fmt.width, box=box)
    inner_height = min(fmt.height, max(1, round(height * scale)))
    inner_width = min(fmt.width, max(1, round(width * scale)))
    top, left = (fmt.height - inner_height) // 2, (fmt.width - inner_width) // 2
    padded = np.zeros((fmt.height, fmt.width, channels), np.uint8)
    inner = resize(pixels, inner_height, inner_width)
    padded[top : top + inner_height, left : left + inner_width] = inner
    return padded
