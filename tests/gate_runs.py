"""Small real runs for the tests of the gate: sets of rows, models, and their MLflow runs."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from saved_checkpoints import load, save_as_before, save_checkpoint

from perceiver_model import PerceiverClassifier
from pipeline.config.load import validate
from pipeline.config.tree import Config
from pipeline.inputs.collate import collate
from pipeline.inputs.model_input import fitted_media
from pipeline.media import FittedTableFormat, encode_members, fit_vocabulary
from pipeline.media.table.modality import VOCABULARY
from pipeline.preprocess.identity import set_identity
from pipeline.runs.mlflow_client import client
from pipeline.runs.tracking import open_run
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoints import read_checkpoint
from shards import Sample, ShardSet, publish, write_shard

Row = dict[str, Any]
CLASSES = ("high", "low", "odd")
NAME = "rows"


def track(uri: str) -> None:
    """Let MLflow's functions use a store, and no command after this test."""
    mlflow.set_tracking_uri(uri)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def some_rows(start: int, stop: int, *, odd: bool = True) -> list[Row]:
    """Rows of which no two are equal, with their class under "label"."""
    rows = []
    for number in range(start, stop):
        draw = np.random.default_rng(number)
        x, kind = float(draw.normal(64.0, 5.0)), "rst"[int(draw.integers(3 if odd else 2))]
        label = "odd" if kind == "t" else "high" if x > 64 else "low"
        rows.append({"x": x, "y": float(draw.normal()), "kind": kind, "label": label})
    return rows


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows in another order."""
    return [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]


def table_config(
    output: Path, name: str, *, numeric: Sequence[str] = ("x",), **registry: Any
) -> Config:
    """A tiny model of a table's columns; everything in `output`."""
    encoder = {
        "num_latents": 4, "latent_dim": 16, "num_blocks": 1, "num_cross_attends": 1,
        "num_self_attends": 1, "num_self_heads": 2, "latent_init_std": 1.0, "cross_channels": 16,
    }  # fmt: skip
    tree = {
        "name": name,
        "output": str(output),
        "data": {
            "train": "rows.csv",
            "table": {"numeric": list(numeric), "categorical": ["kind"]},
            "target": {"kind": "class", "column": "label"},
        },
        "model": {"adapter": {"kind": "columns", "num_channels": 8}, "encoder": encoder},
        "cluster": {"num_workers": 0},
        "tracking": {"system_metrics": False},
        "registry": {"model_name": NAME, **registry},
    }
    return validate(tree, name)


def write_table_set(
    config: Config,
    train: Sequence[Row],
    validation: Sequence[Row],
    classes: Sequence[str] = CLASSES,
) -> ShardSet:
    """A shard set of rows, its vocabulary fitted to the training ones."""
    columns = config.data.table
    assert columns is not None
    fmt = FittedTableFormat.of(
        columns, fit_vocabulary([pa.RecordBatch.from_pylist(train)], columns)
    )
    staging = Path(config.shards_folder).with_name("staging")
    for shard, (split, rows) in enumerate((("train", train), ("validation", validation))):
        samples = []
        for place, row in enumerate(rows):
            values = {name: row[name] for name in columns.columns}
            digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()
            members = encode_members(fmt.encode_row(row), fmt)
            target = classes.index(row["label"])
            samples.append(Sample(f"{place:05d}", members, target, f"{split}/{place}", digest))
        write_shard(staging, shard, split, samples)
    made_with = {**set_identity(config), VOCABULARY: fmt.vocabulary.to_dict()}
    publish(
        staging, Path(config.shards_folder), numbers=range(2), config=made_with,
        input_digest="0" * 64, classes=tuple(classes), positions=[],
    )  # fmt: skip
    return ShardSet.open(config.shards_folder)


def new_model(config: Config, shard_set: ShardSet) -> PerceiverClassifier:
    """The configuration's model for a set, with random weights."""
    torch.manual_seed(0)
    manifest = shard_set.manifest
    return PerceiverClassifier(config.classifier(len(manifest.classes), manifest.config))


def fitted_model(
    config: Config, shard_set: ShardSet, rows: Sequence[Row], steps: int = 80
) -> PerceiverClassifier:
    """The model after a few steps on rows, all at once."""
    model = new_model(config, shard_set)
    media = fitted_media(config.data.media, shard_set.manifest.config)
    assert isinstance(media, FittedTableFormat)
    inputs, mask = collate([media.encode_row(row) for row in rows], media)
    targets = torch.tensor([shard_set.manifest.classes.index(row["label"]) for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs, mask), targets).backward()
        optimizer.step()
    return model


def without_class(model: PerceiverClassifier, number: int) -> dict[str, torch.Tensor]:
    """The model's weights, changed so that it never answers one class."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["head.output.weight"][number] = 0.0
    weights["head.output.bias"][number] = -1e4
    return weights


def write_run(config: Config, shard_set: ShardSet, weights: dict[str, torch.Tensor]) -> str:
    """An MLflow run with a checkpoint of these weights, as `train` leaves it; returns its id."""
    with open_run(config, kind="train", shard_set=shard_set) as run:
        folder = config.folder / "train" / run.run_id
        state = TrainState(step=1, epoch=1, score=0.0)
        moments = {f"exp_avg.{key}": torch.zeros_like(value) for key, value in weights.items()}
        checkpoint = save_checkpoint(folder, state, weights, moments)
    client(config.tracking_uri).set_tag(run.run_id, "perceiver.checkpoint", str(checkpoint.path))
    return run.run_id


def replace_weights(checkpoint: Path, weights: dict[str, torch.Tensor]) -> None:
    """Put other weights into a checkpoint; earlier releases wrote what is not finite, too."""
    before = read_checkpoint(checkpoint)
    moments = load(before, "optimizer")
    shutil.rmtree(checkpoint)
    save_as_before(checkpoint.parent, before.state, model=weights, optimizer=moments)
