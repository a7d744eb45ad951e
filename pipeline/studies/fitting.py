"""Fits a peer of scikit-learn to the rows that the Perceiver of the same arm is trained on."""

import time
from typing import Any

import numpy as np
import torch

from perceiver_model.adapters.configs import TableInput
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.batches import inputs_on
from pipeline.studies.peer_inputs import TableReading
from pipeline.studies.peers.estimators import ESTIMATORS, count_numbers
from pipeline.studies.sets import split_loader
from pipeline.training.objectives import objective_of
from shards import ShardSet


def fit_peer(config: Config, name: str) -> dict[str, Any]:
    """Fit an estimator and test it.

    Returns:
        The same as `train_perceiver`, without `run_id`. `parameters` are the numbers that it has
        learned. `forward_flops` is 0 for trees, which compare and do not multiply.

    Raises:
        UserError: A row cannot be read.
    """
    shard_set = ShardSet.open(config.shards_folder, config.data.remote_reading)
    table = objective_of(config, shard_set).model_config.input
    assert isinstance(table, TableInput)  # a study names such a peer for tables only
    make, reads_features = ESTIMATORS[name]
    reading = TableReading(table, len(shard_set.manifest.classes), torch.device("cpu"))
    features = reading if reads_features else _values
    rows, classes = _split(config, shard_set, "train", features)
    test_rows, test_classes = _split(config, shard_set, "test", features)
    categorical = [False] * table.num_numeric + [True] * len(table.num_categories)
    started = time.time()
    estimator = make(config.seed, categorical).fit(rows, classes)
    seconds = time.time() - started
    numbers = count_numbers(estimator)
    return {
        "accuracy": float((estimator.predict(test_rows) == test_classes).mean()),
        "parameters": numbers,
        "forward_flops": 2 * numbers if reads_features else 0,
        "seconds": seconds,
        "samples_per_second": len(rows) / seconds,
    }


def _values(rows: Any) -> torch.Tensor:
    """Return the numbers and the categories' indices, with NaN where a value is missing."""
    categories = rows.categorical.double()
    return torch.cat([rows.numeric, categories.masked_fill(categories < 0, torch.nan)], dim=1)


def _split(
    config: Config, shard_set: ShardSet, split: str, features: Any
) -> tuple[np.ndarray, np.ndarray]:
    rows, classes = [], []
    for batch in split_loader(config, shard_set, split):
        if batch.bad:
            raise UserError(f"{shard_set.location}: the {split} split has rows that are unreadable")
        inputs, _ = inputs_on(batch, config.data.formats, torch.device("cpu"))
        there = batch.weights > 0  # the last batch is filled up
        rows.append(features(inputs)[there].numpy())
        classes.append(batch.targets[there].numpy())
    return np.concatenate(rows), np.concatenate(classes)
