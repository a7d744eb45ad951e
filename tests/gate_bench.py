"""A registry for tests of the gate, with models of table rows."""

import shutil
from pathlib import Path
from typing import Any

import torch
from gate_runs import (
    CLASSES,
    NAME,
    fitted_model,
    new_model,
    some_rows,
    table_config,
    without_class,
    write_run,
    write_table_set,
)

from pipeline.config.tree import Config
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from shards import ShardSet

ROWS = some_rows(0, 600)
TRAIN, VALIDATION = ROWS[:480], ROWS[480:]


def gate_models(output: Path) -> dict[str, Any]:
    """A set of rows, a good model and one that never answers the third class; no registry."""
    config = table_config(output, "first")
    shard_set = write_table_set(config, TRAIN, VALIDATION)
    model = fitted_model(config, shard_set, TRAIN)
    client(config.tracking_uri)
    return {
        "database": output / "mlflow.db",
        "shards": Path(config.shards_folder),
        "good": model.state_dict(),
        "poor": without_class(model, CLASSES.index("odd")),
        "untrained": new_model(config, shard_set).state_dict(),
    }


class Bench:
    """A registry of its own, and runs in it."""

    def __init__(self, output: Path, made: dict[str, Any]) -> None:
        self.output, self.made = output, made
        self.first = table_config(output, "first")
        shutil.copytree(made["shards"], self.first.shards_folder)
        shutil.copy(made["database"], output / "mlflow.db")
        self.client = client(self.first.tracking_uri)
        self.text = output / "console.txt"

    def run(self, weights: str | dict[str, torch.Tensor], config: Config | None = None) -> str:
        config = config or self.first
        if isinstance(weights, str):
            weights = self.made[weights]
        return write_run(config, ShardSet.open(config.shards_folder), weights)

    def promote(self, run_id: str, **options: Any) -> dict[str, Any]:
        with self.text.open("a") as file:
            return promote(self.client, run_id, Console(file, file), **options)

    @property
    def champion(self) -> str:
        return str(self.client.get_model_version_by_alias(NAME, "champion").version)

    @property
    def printed(self) -> str:
        return self.text.read_text()


def anew(bench: Bench, name: str, train: Any, validation: Any, **options: Any) -> Config:
    """The configuration of another set of rows, which is written."""
    classes = options.pop("classes", CLASSES)
    config = table_config(bench.output, name, **options)
    write_table_set(config, train, validation, classes)
    return config


def spoiled(weights: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    """Weights of which one is not finite."""
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    weights["head.output.bias"][0] = value
    return weights
