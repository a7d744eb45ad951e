"""Clouds of points for studies: the ink of handwritten digits, or meshes that a person gives."""

from pathlib import Path

import numpy as np

from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.runs.storage import remove_folder
from pipeline.studies.image_data import image_folder
from pipeline.studies.sets import build_set, given_source
from shards import ShardSet

POINTS = "points"
_INK = 96
"""The least value of a pixel, of 255, that becomes a point."""


def ink_points(pixels: np.ndarray) -> np.ndarray:
    """Return the points of a picture, float32 `[points, 3]`.

    Args:
        pixels: uint8 `[height, width]`.

    Returns:
        Column, row from below, and the ink in hundredths of a pixel's side, so that the clouds are
        nearly flat.
    """
    rows, columns = np.nonzero(pixels >= _INK)
    depth = pixels[rows, columns] / 255 / 100
    return np.column_stack([columns, len(pixels) - 1 - rows, depth]).astype(np.float32)


def point_set(config: Config, folder: Path, given: Path | None, console: Console) -> ShardSet:
    """Make the set of clouds, or find it made.

    Args:
        config: The configuration with the section `data.points`.
        folder: The folder of the study's data.
        given: The folder that the person gives, with the meshes in `points/train` and
            `points/test`; None takes the ink of the demo's handwritten digits.
        console: The console, which shows the progress.

    Raises:
        UserError: The folder has no meshes.
    """
    if given is not None:
        source = given_source(given, POINTS)
    else:
        source = folder / "ink"
        if not (source / ".whole").exists():
            remove_folder(source)
            write_ink(image_folder(folder, None), source)
            (source / ".whole").touch()
    return build_set(config, POINTS, (source / "train", source / "test"), folder, console)


def write_ink(images: Path, to: Path) -> None:
    """Write the ink of pictures `SPLIT/CLASS/NAME.png` as clouds `SPLIT/CLASS/NAME.npy`."""
    from PIL import Image

    for path in sorted(images.glob("*/*/*.png")):
        cloud = to / path.relative_to(images).with_suffix(".npy")
        cloud.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            np.save(cloud, ink_points(np.asarray(image)))
