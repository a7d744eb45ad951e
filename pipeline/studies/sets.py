"""Make a shard set of a study by the project's own preprocess, and read a split of it."""

from pathlib import Path
from typing import Any

import torch

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.batches import inputs_on, media_loader
from pipeline.preprocess.preprocess import preprocess
from pipeline.runs.console import Console
from shards import ShardReader, ShardSet

SPLITS = ("train", "test")
_BATCH = 256


def build_set(
    config: Config, name: str, sources: tuple[Path, Path], folder: Path, console: Console
) -> ShardSet:
    """Make a set, or find it made.

    Args:
        config: The configuration with the format of the data.
        name: The name of the set's folder.
        sources: The sources of the splits train and test.
        folder: The folder of the study's data.
        console: The console, which shows the progress.
    """
    train, test = map(str, sources)
    places = {"name": name, "output": str(folder), "data.train": train, "data.test": test}
    made = preprocess(with_values(config, {**places, "shards": None}), console)
    if made["num_quarantined"]:
        console.notice(f"{made['shards']}: {made['num_quarantined']} files cannot be read")
    return ShardSet.open(made["shards"])


def given_source(given: Path, name: str) -> Path:
    """Return the folder of one kind of data among those that a person gives.

    Raises:
        UserError: It lacks a split.
    """
    for split in SPLITS:
        if not (given / name / split).is_dir():
            raise UserError(f"--data {given}: has no folder {name}/{split} of class folders")
    return given / name


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


def split_images(
    config: Config, shard_set: ShardSet, split: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images of a split `[images, height, width, channels]`, and their classes.

    Raises:
        UserError: A sample cannot be read.
    """
    images, targets = [], []
    for batch in split_loader(config, shard_set, split):
        if batch.bad:
            raise UserError(f"{shard_set.location}: the {split} split has unreadable samples")
        inputs, _ = inputs_on(batch, config.data.formats, device)
        assert isinstance(inputs, torch.Tensor)  # of images
        there = batch.weights.to(device) > 0  # the last batch is filled up
        images.append(inputs[there])
        targets.append(batch.targets.to(device)[there])
    return torch.cat(images), torch.cat(targets)
