"""Images as files, and real photographs among them, cut from the two that scikit-learn ships."""

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright image is stored by each EXIF orientation but 1, which leaves it."""


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


def stored_turned(
    upright: Image.Image, orientation: int, kind: str = "JPEG", **options: object
) -> bytes:
    """A file that holds the image turned, and in EXIF the orientation that turns it back."""
    stored = upright.transpose(TURNS[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x112] = orientation
    return encoded(stored, kind, exif=exif, **options)


def mean_difference(pixels: np.ndarray, image: Image.Image | np.ndarray) -> float:
    """In steps of 255."""
    return float(np.abs(pixels.astype(int) - np.asarray(image, dtype=int)).mean())
