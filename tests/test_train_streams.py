"""Trainings on documents in parts, whose class only their first part tells.

A document begins with 32 bytes of the names of time zones, of builtin functions or of Python's
manual, and goes on with passages of the manual.
"""

import builtins
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from zoneinfo import available_timezones

import numpy as np
import pytest
import torch

from pipeline.config.load import validate
from pipeline.config.tree import Config
from pipeline.preprocess.preprocess import preprocess
from pipeline.runs.console import Console
from pipeline.training.train import train

LENGTH, NUM_PARTS = 32, 4


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A folder of the documents, and the shards of their parts."""
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder / "raw")
    with (folder / "console.txt").open("w") as file:
        preprocess(config_of(folder), Console(file, file))
    return folder


def write_documents(folder: Path, number: int = 360) -> None:
    """Documents of 2 to 6 parts."""
    random = np.random.default_rng(0)
    manual = re.sub(r"\s+", " ", " ".join(topics.values())).encode("ascii", "ignore").decode()
    texts = {
        "zones": " ".join(sorted(available_timezones())),
        "builtins": " ".join(dir(builtins)),
        "manual": manual,
    }
    for index in range(number):
        name = [*texts][index % 3]
        first = cut(texts[name], random, LENGTH)
        rest = cut(manual, random, LENGTH * (1 + int(random.integers(5))))
        path = folder / name / f"{index}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(first + rest)


def cut(text: str, random: np.random.Generator, length: int) -> str:
    start = int(random.integers(len(text) - length))
    return text[start : start + length]


def config_of(folder: Path, name: str = "documents", **training: Any) -> Config:
    tree = {
        "name": name,
        "output": str(folder / "runs"),
        "shards": str(folder / "shards"),
        "data": {
            "train": str(folder / "raw"),
            "validation": 0.2,
            "text": {"max_length": LENGTH, "cut": "all"},
            "samples_per_shard": 100,
        },
        "model": {
            "adapter": {"kind": "token_embedding", "num_channels": 32},
            "encoder": {
                "num_latents": 8, "latent_dim": 32, "num_blocks": 1, "num_cross_attends": 1,
                "num_self_attends": 1, "num_self_heads": 4, "latent_init_std": 1.0,
            },
        },
        "training": {
            "epochs": 6, "batch_size": 64, "learning_rate": 4e-3, "weight_decay": 0.01,
            "schedule": {"warmup_epochs": 0}, **training,
        },
        "cluster": {"num_workers": 0},
        "tracking": {"system_metrics": False},
        "registry": {"model_name": name},
    }  # fmt: skip
    return validate(tree, name)


def test_what_the_first_part_tells_is_known_after_the_last(documents: Path, console: Console):
    stream = {"parts_per_step": 2}
    carried = train(config_of(documents, "carried", stream=stream), console)["metrics"]
    alone = train(config_of(documents, "alone"), console)["metrics"]
    print(carried, alone)
    assert carried["val_recording_accuracy"] >= 0.85
    assert carried["val_accuracy"] >= 0.85
    assert alone["val_accuracy"] < 0.65 and "val_recording_accuracy" not in alone
