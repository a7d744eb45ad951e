"""Real photographs as JPEG files, cut from the two that scikit-learn ships."""

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def photo(width: int = 500, height: int = 375, seed: int = 0) -> Image.Image:
    """A part of a photograph, by default of the size usual in ImageNet."""
    rng = np.random.default_rng(seed)
    whole = Image.fromarray(load_sample_images().images[seed % 2])
    if whole.width < width or whole.height < height:
        return whole.resize((width, height), Image.Resampling.BICUBIC)
    left = int(rng.integers(whole.width - width + 1))
    top = int(rng.integers(whole.height - height + 1))
    return whole.crop((left, top, left + width, top + height))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The image as a file of that kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo_jpeg(seed: int = 0) -> bytes:
    """500 x 375 pixels in about 87 KB, the mean of ImageNet."""
    image = photo(seed=seed)
    files = (encoded(image, quality=quality) for quality in range(80, 100))
    return next(data for data in files if len(data) >= 85_000)
