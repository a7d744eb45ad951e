"""Random parts of JPEGs, and of other images, for training."""

import math
from collections.abc import Callable

import numpy as np

from pipeline.media.image.pillow import MAX_PIXELS, decode_pixels
from pipeline.media.image.resample import resize
from pipeline.media.image.turbo import decode_jpeg, read_header

CropBox = tuple[int, int, int, int]
"""Left, top, width and height in pixels of the upright image."""


def random_resized_crop(
    data: bytes | memoryview,
    *,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """A random part of an image, scaled to a square: the augmentation of ImageNet training.

    The part is drawn as torchvision's `RandomResizedCrop` draws it, and scaled bilinearly with
    antialiasing. A JPEG is decoded at the least scale that holds the part at full detail, and
    without Python's global lock, so that threads help.

    Args:
        data: an image file.
        size: side of the result in pixels.
        rng: its state alone decides the part.
        scale: least and greatest area of the part, as a share of the image's.
        ratio: least and greatest width / height of the part.
        max_pixels: larger images are refused.

    Returns:
        uint8 `[size, size, 3]`, read-only.

    Raises:
        MediaError: the file cannot be used; the text is the reason.
    """

    def draw(height: int, width: int) -> CropBox:
        return draw_part(height, width, rng, scale=scale, ratio=ratio)

    return resized_crop(data, draw, size=size, max_pixels=max_pixels)


def resized_crop(
    data: bytes | memoryview,
    part: CropBox | Callable[[int, int], CropBox],
    *,
    size: int,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """A part of an image, given or chosen from its height and width, scaled to a square.

    Returns, and raises, as `random_resized_crop`.
    """
    header = read_header(data)
    if header is None or header.height * header.width > max_pixels:
        whole = decode_pixels(bytes(data), max_pixels=max_pixels)
        height, width, _ = whole.shape
        chosen = part(height, width) if callable(part) else part
        return _scaled(whole, chosen, height, width, size)
    height, width = header.upright_size
    chosen = part(height, width) if callable(part) else part
    pixels = decode_jpeg(data, header, share=size / min(chosen[2:]))
    if pixels is None:
        pixels = decode_pixels(bytes(data), max_pixels=max_pixels)
    return _scaled(pixels, chosen, height, width, size)


def draw_part(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> CropBox:
    """Draw a part of an image as torchvision does: ten tries, else the largest central one."""
    draws = rng.random((10, 4)).tolist()
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_draw, ratio_draw, left_draw, top_draw in draws:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(low + (high - low) * ratio_draw)
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(left_draw * (width - crop_width + 1))
            top = int(top_draw * (height - crop_height + 1))
            return left, top, crop_width, crop_height
    crop_width = max(1, min(width, round(height * ratio[1])))
    crop_height = max(1, min(height, round(width / ratio[0])))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def _scaled(pixels: np.ndarray, part: CropBox, height: int, width: int, size: int) -> np.ndarray:
    """The part, given in an image of this height and width, from pixels that may be fewer."""
    rows, columns, _ = pixels.shape
    left, top, part_width, part_height = part
    if (rows, columns) == (height, width):
        whole = pixels[top : top + part_height, left : left + part_width]
        return resize(whole, size, size, filter="bilinear")
    across, down = columns / width, rows / height
    box = (left * across, top * down, part_width * across, part_height * down)
    return resize(pixels, size, size, box=box, filter="bilinear")
