"""Images: any format Pillow reads, to a uint8 array of one fixed size."""

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.media.errors import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image

FIELD = "image"
# Twice Image.MAX_IMAGE_PIXELS: from there on Pillow takes an image for a decompression bomb.
PILLOW_MAX_PIXELS = 178_956_970


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """What every image becomes.

    Attributes:
        height, width: size in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: ``crop`` scales the shorter side and cuts the centre; ``pad`` scales the longer side
            and fills with black; ``stretch`` ignores the aspect ratio.
        encoding: how shards hold the pixels, ``raw`` (uint8 ``.npy``) or ``jpeg``.
        jpeg_quality: 1 to 100, used by ``jpeg``.
        max_pixels: images with more pixels than this are refused before they are decoded.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    height: int
    width: int
    channels: Literal[1, 3] = 3
    resize: Literal["crop", "pad", "stretch"] = "crop"
    encoding: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: int = 92
    max_pixels: int = 100_000_000

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


def decode_image(data: bytes, fmt: ImageFormat) -> np.ndarray:
    """Decode one encoded image.

    EXIF orientation is applied, alpha is laid over white, 16-bit grey is scaled to 8, CMYK and
    palettes become RGB, and of an animation the first frame is taken.

    Args:
        data: the file's bytes.
        fmt: the size and channels wanted.

    Returns:
        uint8 ``[height, width, channels]``.

    Raises:
        MediaError: the bytes are no image Pillow reads, are cut short, or exceed ``max_pixels``.
    """
    from PIL import Image, ImageOps

    if not data:
        raise MediaError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                if width * height > fmt.max_pixels:
                    raise MediaError(
                        f"{width}x{height} pixels, more than max_pixels={fmt.max_pixels}"
                    )
                # JPEG alone heeds this: it decodes at the least scale that still holds the target.
                if image.format == "JPEG":
                    image.draft(None, (2 * fmt.width, 2 * fmt.height))
                upright = ImageOps.exif_transpose(image)
                resized = _resize(_flatten(upright, fmt.channels), fmt)
                pixels = np.asarray(resized, dtype=np.uint8)
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError("not enough memory to decode it") from error
    except Exception as error:  # Pillow's plugins raise almost anything on malformed bytes
        raise MediaError(_reason(error)) from error
    return pixels.reshape(fmt.height, fmt.width, fmt.channels)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """JPEG bytes of uint8 ``[height, width, channels]``."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
        buffer, "JPEG", quality=quality
    )
    return buffer.getvalue()


def _flatten(image: "Image", channels: int) -> "Image":
    """To mode L or RGB, whatever the file's mode."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image, dtype=np.int64)
        image = Image.fromarray(np.clip(wide >> 8, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise MediaError("it holds values that are not finite")
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
        image = Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return image.convert("L" if channels == 1 else "RGB")


def _resize(image: "Image", fmt: ImageFormat) -> "Image":
    from PIL import Image, ImageOps

    size = (fmt.width, fmt.height)
    if image.size == size:
        return image
    if fmt.resize == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    if fmt.resize == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    scale = min(fmt.width / image.width, fmt.height / image.height)
    width = min(fmt.width, max(1, round(image.width * scale)))
    height = min(fmt.height, max(1, round(image.height * scale)))
    padded = Image.new(image.mode, size)
    corner = ((fmt.width - width) // 2, (fmt.height - height) // 2)
    padded.paste(image.resize((width, height), Image.Resampling.BICUBIC), corner)
    return padded


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if text.startswith("cannot identify image file"):
        return "no image format that Pillow knows"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
