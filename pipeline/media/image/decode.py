"""Images: any format Pillow reads by itself, to a uint8 array of one fixed size."""

import io
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from pipeline.media.image.pillow import MAX_PIXELS, check_size, decode_pixels
from pipeline.media.image.resample import resize
from pipeline.media.image.turbo import decode_jpeg, read_header

FIELD = "image"
# Twice Image.MAX_IMAGE_PIXELS: from there on Pillow takes an image for a decompression bomb.
PILLOW_MAX_PIXELS = 178_956_970
_DETAIL = 2.0
"""JPEGs keep this many times the pixels wanted, along each side, for the resizing's own filter."""


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """What every image becomes.

    Attributes:
        height, width: size in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: `crop` scales the shorter side and cuts the centre; `pad` scales the longer side
            and fills with black; `stretch` ignores the aspect ratio.
        encoding: how shards hold the pixels, `raw` (uint8 `.npy`) or `jpeg`.
        jpeg_quality: 1 to 100, used by `jpeg`.
        max_pixels: images with more pixels than this are refused before they are decoded.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    modality: ClassVar[str] = "image"

    height: int
    width: int
    channels: Literal[1, 3] = 3
    resize: Literal["crop", "pad", "stretch"] = "crop"
    encoding: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: int = 92
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name in ("height", "width", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_pixels > PILLOW_MAX_PIXELS:
            raise ValueError(
                f"max_pixels is {self.max_pixels}; Pillow refuses more than {PILLOW_MAX_PIXELS}"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality is {self.jpeg_quality}; it must lie in 1 to 100")

    @property
    def member(self) -> str:
        """Name of the shard member that holds the pixels."""
        return f"{FIELD}.npy" if self.encoding == "raw" else f"{FIELD}.jpg"


def decode_image(data: bytes, fmt: ImageFormat, *, strict: bool = True) -> np.ndarray:
    """Decode one encoded image.

    EXIF orientation is applied, alpha is laid over white, 16-bit grey is scaled to 8, CMYK and
    palettes become RGB, and of an animation the first frame is taken. JPEGs are decoded by
    libjpeg-turbo, at a fraction of their size where that is still twice what is wanted.

    Args:
        data: the file's bytes.
        fmt: the size and channels wanted.
        strict: whether an image is refused, too, that its decoder takes with a warning, or that has
            a wrong checksum or lacks its end.

    Returns:
        uint8 `[height, width, channels]`.

    Raises:
        MediaError: the bytes are no image, are cut short or damaged, or exceed `max_pixels`.
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
    """JPEG bytes of uint8 `[height, width, channels]`."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
        buffer, "JPEG", quality=quality
    )
    return buffer.getvalue()


class PictureFormat(Protocol):
    """What images and the frames of films are brought to: a size in pixels, and how."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def resize(self) -> Literal["crop", "pad", "stretch"]: ...


def _scale(height: float, width: float, fmt: PictureFormat) -> float:
    """Result's pixels for each of the image's, along the side that keeps the most."""
    down, across = fmt.height / height, fmt.width / width
    return min(down, across) if fmt.resize == "pad" else max(down, across)


def fit_pixels(pixels: np.ndarray, fmt: PictureFormat, height: float, width: float) -> np.ndarray:
    """An image in the format's size, brought there as its `resize` says.

    Args:
        pixels: uint8 `[rows, columns, channels]`.
        fmt: the size wanted.
        height, width: of the image as it is to be seen, of which fewer or other pixels may be here.

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
