"""Mask images: a class number for every pixel, with the values of the file."""

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.image.decode import ImageFormat
from pipeline.media.image.pillow import (
    check_size,
    check_whole,
    formats,
    pillow_errors,
    upright_size,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

UNLABELLED = 255
"""The value of pixels in a mask that belong to no class, such as the border of `pad`."""

_LOSSLESS = frozenset(
    ["bmp_rle", "gif", "libtiff", "packbits", "pcx", "ppm", "ppm_plain", "raw", "tga_rle", "zip"]
)
_LOSSY_TIFF = frozenset(["jpeg", "tiff_jpeg", "webp"])
_RAW_MODE = re.compile(r"(1|L|P)(?:;([124])?(I)?R?)?")
"""Pillow's name for the conversion of a file's values: bits if not 8, and I if inverted."""


def decode_mask(
    data: bytes,
    fmt: ImageFormat,
    num_classes: int = 0,
    image: bytes | None = None,
    *,
    strict: bool = True,
) -> np.ndarray:
    """Decode a mask image at the size of `fmt`, by nearest neighbour. The values do not change.

    Args:
        data: An image with one channel of at most 8 bits, or with a palette. For a palette, the
            indices are the values.
        fmt: The size, and whether to crop, pad (with `UNLABELLED`) or stretch, as for images.
        num_classes: Every value must be below this or `UNLABELLED`. 0 allows all values.
        image: The image that the mask belongs to. Unless both are stretched, they must have the
            same aspect ratio.
        strict: The same as in `pipeline.media.decode`.

    Returns:
        uint8 `[height, width]`.

    Raises:
        MediaError: The mask is not such an image, has too many pixels, has a format that changes
            values, has a value that is not a class, or has another aspect ratio than the image.
    """
    try:
        upright = _upright(data, fmt.max_pixels, strict)
        if image is not None and fmt.resize != "stretch":
            _check_shape(upright.height, upright.width, *upright_size(image))
        mask = np.asarray(_nearest(upright, fmt))
        wrong = mask[(mask >= num_classes) & (mask != UNLABELLED)] if num_classes else mask[:0]
        if wrong.size:
            raise MediaError(f"value {wrong.max()} is none of {num_classes} classes")
    except MediaError as error:
        raise MediaError(f"mask: {error}") from error.__cause__ or error
    return mask


def _upright(data: bytes, max_pixels: int, strict: bool) -> "Image":
    """Return a mask at its own size, upright, with the values of the file."""
    from PIL import Image, ImageOps

    with pillow_errors(data, max_pixels), Image.open(io.BytesIO(data), formats=formats()) as image:
        check_size(image.height, image.width, max_pixels)
        if strict:
            check_whole(image, data)
        if image.mode not in ("L", "P", "1"):
            raise MediaError(f"mode {image.mode}; it must have one channel of at most 8 bits")
        restore = _restored_from(image)
        image.load()
        flat = Image.fromarray(restore[np.asarray(image).astype(np.uint8)])
        flat.getexif().update(image.getexif())
        return ImageOps.exif_transpose(flat)


def _restored_from(image: "ImageFile") -> np.ndarray:
    """Return the file's value for each of Pillow's, uint8 [256]. Pillow scales or inverts some."""
    tile = image.tile[0] if image.tile else None
    lossy = tile is None or tile.codec_name not in _LOSSLESS
    if tile is None or lossy or image.info.get("compression") in _LOSSY_TIFF:
        raise MediaError(f"{image.format} need not keep values as they are; save it as PNG")
    args = (tile.args,) if isinstance(tile.args, str) else tuple(tile.args or ())
    values = np.arange(256)
    if tile.codec_name == "gif":
        return values.astype(np.uint8)
    if image.format == "PPM" and image.mode == "1":
        raise MediaError("PBM, where 1 is black and 0 white; save it as PNG")
    if tile.codec_name.startswith("ppm"):
        return np.round(values * (int(args[1]) / 255)).astype(np.uint8)
    raw_mode = _RAW_MODE.fullmatch(str(args[0]))
    if raw_mode is None:
        raise MediaError(f"{image.format} of another kind than is read; save it as PNG")
    mode, bits, inverted = raw_mode.groups()
    if inverted:
        values = (1 if mode == "1" else 255) - values
    if mode == "L" and bits:
        values = values // (255 // (2 ** int(bits) - 1))
    return values.astype(np.uint8)


def _check_shape(height: int, width: int, image_height: int, image_width: int) -> None:
    """Reject an aspect ratio that differs from the image's by more than rounding explains."""
    rounding = max(height + width, image_height + image_width)
    if abs(width * image_height - height * image_width) >= rounding:
        raise MediaError(
            f"{width}x{height} pixels are of another shape than its image's "
            f"{image_width}x{image_height}"
        )


def _nearest(mask: "Image", fmt: ImageFormat) -> "Image":
    from PIL import Image, ImageOps

    size, nearest = (fmt.width, fmt.height), Image.Resampling.NEAREST
    if fmt.resize == "stretch":
        return mask.resize(size, nearest)
    if fmt.resize == "crop":
        return ImageOps.fit(mask, size, nearest)
    scale = min(fmt.width / mask.width, fmt.height / mask.height)
    width = min(fmt.width, max(1, round(mask.width * scale)))
    height = min(fmt.height, max(1, round(mask.height * scale)))
    padded = Image.new("L", size, UNLABELLED)
    corner = ((fmt.width - width) // 2, (fmt.height - height) // 2)
    padded.paste(mask.resize((width, height), nearest), corner)
    return padded
