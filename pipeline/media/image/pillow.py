"""Pillow with limits and short errors. Images that Pillow would misread are rejected."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.media.errors import MediaError, one_line
from pipeline.media.image.files import check_whole_image
from pipeline.media.image.tiff import check_whole_tiff
from pipeline.media.image.turbo import check_jpeg, read_header

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 100_000_000


def decode_pixels(
    data: bytes, *, channels: int = 3, max_pixels: int = MAX_PIXELS, strict: bool = True
) -> np.ndarray:
    """Decode one encoded image at its own size with Pillow.

    Args:
        data: The bytes of the file.
        channels: 1 (grey) or 3 (RGB).
        max_pixels: The most pixels in the image.
        strict: The same as in `decode_image`.

    Returns:
        uint8 `[height, width, channels]`.

    Raises:
        MediaError: See `decode_image`.
    """
    from PIL import Image, ImageOps

    with pillow_errors(data, max_pixels), Image.open(io.BytesIO(data), formats=formats()) as image:
        check_size(image.height, image.width, max_pixels)
        if strict:
            check_whole(image, data)
        _refuse_misread(image)
        white_is_zero = _tag(image, "PhotometricInterpretation") == 0
        _scale_transparency(image)
        upright = ImageOps.exif_transpose(image)
        pixels = np.asarray(_flattened(upright, channels, white_is_zero), dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def check_whole(image: "ImageFile", data: bytes) -> None:
    """Reject an image that is damaged or cut short but that Pillow would accept.

    Args:
        image: The image, just opened, with an allowed number of pixels.
        data: The bytes of the file.

    Raises:
        MediaError: The image is damaged or cut short; the message says how.
    """
    if image.format in ("JPEG", "MPO"):
        check_jpeg(data)
    elif image.format == "TIFF":
        check_whole_tiff(image, data)
    else:
        check_whole_image(data)


@cache
def formats() -> list[str]:
    """Return all formats that Pillow itself reads. For PostScript it would run Ghostscript."""
    from PIL import Image

    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raise MediaError if there are more pixels than `max_pixels`."""
    if height * width > max_pixels:
        raise MediaError(f"{width}x{height} pixels, more than max_pixels={max_pixels}")


def upright_size(data: bytes) -> tuple[int, int]:
    """Return the height and width of an image after its EXIF orientation is applied.

    Raises:
        MediaError: The bytes are not an image.
    """
    from PIL import ExifTags, Image

    header = read_header(data)
    if header is not None:
        return header.upright_size
    with pillow_errors(data, MAX_PIXELS), Image.open(io.BytesIO(data), formats=formats()) as image:
        # Pillow itself turns a TIFF, and reports the size after that.
        turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        width, height = image.size
    return (width, height) if turned else (height, width)


@contextmanager
def pillow_errors(data: bytes, max_pixels: int) -> Iterator[None]:
    """Turn Pillow's errors while it reads `data` into MediaErrors, and hide its warnings."""
    from PIL import Image

    if not data:
        raise MediaError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError("not enough memory to decode it") from error
    except Image.DecompressionBombError as error:  # raised before the size is known here
        count = re.findall(r"\d+", str(error))[0]
        raise MediaError(f"{count} pixels, more than max_pixels={max_pixels}") from error
    except Exception as error:  # Pillow's plugins raise almost anything on malformed bytes
        raise MediaError(_reason(error)) from error


def _tag(image: "ImageFile", name: str) -> Any:
    """Return a tag of a TIFF, or None if it is missing."""
    from PIL import ExifTags

    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return tags.get(ExifTags.Base[name])


def _refuse_misread(image: "ImageFile") -> None:
    """Reject pixels whose values Pillow would change, or whose range is unknown."""
    planes = _tag(image, "PlanarConfiguration") == 2 and len(_tag(image, "BitsPerSample") or ()) > 1
    if planes and max(_tag(image, "BitsPerSample")) > 8:
        raise MediaError(
            "a TIFF of 16-bit colours in planes, which is not read; save it with 8 bits, or with "
            "its colours interleaved"
        )
    if image.mode == "I" and image.format != "PPM":
        raise MediaError(
            f"{image.format} of 32-bit or signed integers, whose range nothing tells; "
            "save it with 8 or 16 bits"
        )
    if image.mode == "F" and _tag(image, "PhotometricInterpretation") == 0:
        raise MediaError("a TIFF of real numbers where 0 is white; save it with 8 or 16 bits")
    if _raw_mode(image).startswith("RGB;16") and "transparency" in image.info:
        raise MediaError(
            "a PNG of 16-bit colours, one of them transparent; save it with 8 bits, or with alpha"
        )


def _raw_mode(image: "ImageFile") -> str:
    """Return Pillow's name for the conversion of a PNG's values."""
    return str(image.tile[0].args) if image.format == "PNG" and image.tile else ""


def _scale_transparency(image: "ImageFile") -> None:
    """Scale the transparent value of a grey PNG to 8 bits. Pillow only scales the pixels."""
    few = re.fullmatch("L;([24])", _raw_mode(image))
    if few and "transparency" in image.info:
        most = 2 ** int(few[1]) - 1
        image.info["transparency"] = (image.info["transparency"] & most) * (255 // most)


def _flattened(image: "Image", channels: int, white_is_zero: bool) -> "Image":
    """Convert any mode to L or RGB."""
    from PIL import Image

    if image.mode.startswith("I"):
        wide = np.array(image).astype(np.int32)
        clear = wide == image.info.get("transparency", -1)
        grey = np.clip((65535 - wide if white_is_zero else wide) >> 8, 0, 255).astype(np.uint8)
        grey[clear] = 255
        image = Image.fromarray(grey)
    elif image.mode == "F":
        values = np.array(image)
        if not np.isfinite(values).all():
            raise MediaError("it holds values that are not finite")
        values *= 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
        image = Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))
    elif image.mode == "LAB":
        image = image.convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return image.convert("L" if channels == 1 else "RGB")


def _reason(error: Exception) -> str:
    if str(error).startswith("cannot identify image file"):
        return "no image format that Pillow knows"
    return one_line(error)
