"""Random crops of JPEGs, and of other images, for training."""

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
    """Scale a random part of an image to a square: the augmentation of ImageNet training.

    The part is drawn as in torchvision's `RandomResizedCrop`, and is scaled bilinearly with
    antialiasing. A JPEG is decoded at the smallest scale that keeps the full detail of the part.
    Decoding releases Python's global lock, so threads run in parallel.

    Args:
        data: The bytes of an image file.
        size: The side of the result in pixels.
        rng: The random generator. Its state alone determines the part.
        scale: The smallest and largest area of the part, as a share of the image's area.
        ratio: The smallest and largest width / height of the part.
        max_pixels: The most pixels in the image. Larger images are rejected.

    Returns:
        uint8 `[size, size, 3]`, read-only.

    Raises:
        MediaError: The file cannot be used; the message is the reason.
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
    """Scale a part of an image to a square.

    Args:
        data: The bytes of an image file.
        part: The part, or a function that chooses it from the image's height and width.
        size: The side of the result in pixels.
        max_pixels: The most pixels in the image. Larger images are rejected.

    Returns:
        uint8 `[size, size, 3]`, read-only.

    Raises:
        MediaError: The file cannot be used; the message is the reason.
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
    """Draw a part of an image as torchvision does: ten tries, then the largest central part.

    Args:
        height: The height of the image.
        width: The width of the image.
        rng: The random generator.
        scale: The smallest and largest area of the part, as a share of the image's area.
        ratio: The smallest and largest width / height of the part.
    """
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
    """Scale a part. It is in pixels of the full image; `pixels` may be a smaller version of it."""
    rows, columns, _ = pixels.shape
    left, top, part_width, part_height = part
    if (rows, columns) == (height, width):
        whole = pixels[top : top + part_height, left : left + part_width]
        return resize(whole, size, size, filter="bilinear")
    across, down = columns / width, rows / height
    box = (left * across, top * down, part_width * across, part_height * down)
    return resize(pixels, size, size, box=box, filter="bilinear")
