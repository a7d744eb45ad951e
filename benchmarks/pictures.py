"""Photographs to measure with: JPEG crops of scikit-learn's two sample pictures."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 500, 375
"""The usual size in ImageNet, in pixels."""
DISTINCT = 500
QUALITY = 96
"""The JPEG quality. It gives about 87 KB per photograph, as in ImageNet's larger half."""


def photographs(count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield JPEG files of 500 x 375 pixels: crops at several scales, some of them mirrored.

    Args:
        count: The number of files.
        seed: The seed of the random crops.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(seed)
    for number in range(count):
        picture = pictures[number % len(pictures)]
        scale = rng.uniform(0.85, 1.0)
        width, height = round(WIDTH * scale), round(HEIGHT * scale)
        left = int(rng.integers(0, picture.width - width + 1))
        top = int(rng.integers(0, picture.height - height + 1))
        window = picture.resize(
            (WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + width, top + height)
        )
        if rng.integers(2):
            window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        file = io.BytesIO()
        window.save(file, "JPEG", quality=QUALITY)
        yield file.getvalue()


def write_folder(folder: Path, count: int, seed: int = 0) -> int:
    """Write `folder/CLASS/NUMBER.jpg` in two classes, and return the total number of bytes.

    Args:
        folder: The folder.
        count: The number of files. At most 500 of them are distinct.
        seed: The seed of the random crops.
    """
    total = 0
    distinct = list(photographs(min(count, DISTINCT), seed))
    for number in range(count):
        data = distinct[number % len(distinct)]
        path = folder / ("china" if number % 2 == 0 else "flower") / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        total += len(data)
    return total
