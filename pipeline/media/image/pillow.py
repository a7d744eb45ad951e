"""Pillow, bounded: its errors in one line, and what it would read otherwise than the file says."""

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
    """Decode one encoded image at its own size, by Pillow.

    Returns:
        uint8 `[height, width, channels]`.

    Raises:
        MediaError: as `decode_image`.
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
    """Refuse an image that is damaged or cut short, and that Pillow would take for whole.

    Args:
        image: just opened, and of no more pixels than are allowed.
        data: the file's bytes.

    Raises:
        MediaError: what is missing or damaged.
    """
    if image.format in ("JPEG", "MPO"):
        check_jpeg(data)
    elif image.format == "TIFF":
        check_whole_tiff(image, data)
    else:
        check_whole_image(data)


@cache
def formats() -> list[str]:
    """All that Pillow reads by itself: for PostScript it starts Ghostscript, which runs it."""
    from PIL import Image

    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raises MediaError where there are more pixels than `max_pixels`."""
    if height * width > max_pixels:
        raise MediaError(f"{width}x{height} pixels, more than max_pixels={max_pixels}")


def upright_size(data: bytes) -> tuple[int, int]:
    """Height and width of an image once EXIF's orientation is applied.

    Raises:
        MediaError: the bytes are no image.
    """
    from PIL import ExifTags, Image

    header = read_header(data)
    if header is not None:
        return header.upright_size
    with pillow_errors(data, MAX_PIXELS), Image.open(io.BytesIO(data), formats=formats()) as image:
        # Pillow turns TIFF by itself, and says the size that will come of it.
        turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        width, height = image.size
    return (width, height) if turned else (height, width)


@contextmanager
def pillow_errors(data: bytes, max_pixels: int) -> Iterator[None]:
    """Errors of Pillow's while it reads `data` as MediaErrors; its warnings are not shown."""
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
    except Image.DecompressionBombError as error:  # before the size could be asked for
        count = re.findall(r"\d+", str(error))[0]
        raise MediaError(f"{count} pixels, more than max_pixels={max_pixels}") from error
    except Exception as error:  # Pillow's plugins raise almost anything on malformed bytes
        raise MediaError(_reason(error)) from error


def _tag(image: "ImageFile", name: str) -> Any:
    """A TIFF's tag, None where there is none."""
    from PIL import ExifTags

    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return tags.get(ExifTags.Base[name])


def _refuse_misread(image: "ImageFile") -> None:
    """Pixels that Pillow gives other values than the file has, or whose range nothing tells."""
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
    """Pillow's name of how a PNG's numbers become pixels."""
    return str(image.tile[0].args) if image.format == "PNG" and image.tile else ""


def _scale_transparency(image: "ImageFile") -> None:
    """Pillow scales grey PNGs of few bits to 8, but not the one value that is transparent."""
    few = re.fullmatch("L;([24])", _raw_mode(image))
    if few and "transparency" in image.info:
        most = 2 ** int(few[1]) - 1
        image.info["transparency"] = (image.info["transparency"] & most) * (255 // most)


def _flattened(image: "Image", channels: int, white_is_zero: bool) -> "Image":
    """To mode L or RGB, whatever the file's mode."""
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
