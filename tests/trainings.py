"""The results of small trainings."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_checkpoints import load

from pipeline.config.load import validate
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.evaluation.best import report_best
from pipeline.evaluation.evaluate import evaluate
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoint_state import WEIGHTS
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.optimizer_step import OptimizerStep
from pipeline.training.step_sums import StepSums
from pipeline.training.train import train
from shards import ShardSet


def config_here(name: str, folder: Path, sections: dict[str, Any], **training: Any) -> Config:
    """A configuration that trains in this process, with a learning rate that does not warm up.

    Args:
        name: The name of the run and of the registered model.
        folder: The folder of the runs.
        sections: The other sections, and `shards`.
        training: Fields of the section `training`.
    """
    schedule = {"weight_decay": 0.01, "schedule": {"warmup_epochs": 0}}
    tree = {
        "name": name,
        "output": str(folder / "runs"),
        **sections,
        "training": {**schedule, **training},
        "cluster": {"num_workers": 0},
        "tracking": {"system_metrics": False},
        "registry": {"model_name": name},
    }
    return validate(tree, name)


def final_weights(config: Config) -> dict[str, torch.Tensor]:
    last = last_checkpoint(config.folder / "train" / "checkpoints")
    assert last is not None
    return load(last, WEIGHTS)


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def train_and_report(config: Config, console: Console) -> dict[str, Any]:
    """Train, and log what people read about the best checkpoint, as the command does."""
    return train(config, console, report_best=report_best)


def evaluated_as_trained(
    config: Config, trained: dict[str, Any], console: Console, *overrides: str
) -> dict[str, Any]:
    """What `perceiver evaluate` finds for a training, whose own numbers it must give again."""
    result = evaluate(client(config.tracking_uri), trained["run_id"], console, overrides=overrides)
    own = {
        name.removeprefix("val_"): value
        for name, value in trained["metrics"].items()
        if name.startswith("val_")
    }
    assert result["metrics"] == pytest.approx(own, rel=1e-6, abs=1e-6)
    has_its_report(config, trained, result)
    losses = [each["loss"] for each in result["worst"]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == min(25, result["samples"])
    return result


def has_its_report(config: Config, trained: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """A training has left a card, the details of its best evaluation, and examples."""
    store = client(config.tracking_uri)
    paths = [each.path for path in ("", "report") for each in store.list_artifacts(
        trained["run_id"], path)]  # fmt: skip
    assert {"model_card.md", "report/report.html", "report/report.json"} <= {*paths}
    folder = config.folder / "train"
    report = json.loads((folder / "report" / "report.json").read_text("utf-8"))
    for part in ("confusion_matrix", "classes"):
        assert are_close(report[part], evaluation[part])
    has_matrix = evaluation["confusion_matrix"] is not None
    assert ("report/confusion_matrix.png" in paths) == has_matrix
    count = min(config.tracking.examples, evaluation["samples"])
    assert len(report["examples"]) == count
    has_pictures = bool({"image", "video", "audio", "points"} & {*config.data.formats})
    assert (f"report/example-{count}.png" in paths) == has_pictures
    numbers = [each["number"] for each in report["examples"]]
    assert len({*numbers}) == count
    card = (folder / "model_card.md").read_text("utf-8")
    assert trained["run_id"] in card and f"{trained['parameters']:,}" in card
    assert ShardSet.open(config.shards_folder).digest in card


def leaves(value: Any) -> list[Any]:
    """The numbers and texts in nested dictionaries and lists, in an order of their own."""
    if isinstance(value, dict):
        return [each for name in sorted(value) for each in (name, *leaves(value[name]))]
    if isinstance(value, list):
        return [each for inner in value for each in leaves(inner)]
    return [value]


def are_close(found: Any, expected: Any) -> bool:
    """Whether two nested values are equal up to rounding."""
    pairs = zip(leaves(found), leaves(expected), strict=True)
    return all(
        a == pytest.approx(b, rel=1e-5, abs=1e-6) if isinstance(b, float) else a == b
        for a, b in pairs
    )


@contextlib.contextmanager
def cut_off_after(last: int) -> Iterator[None]:
    """Expect the training inside to end with an error after a step, counted from 1."""

    take = OptimizerStep.take

    def cut(own: OptimizerStep, sums: StepSums, after: TrainState, **options: bool) -> Any:
        if after.step > last:
            raise UserError("cut off")
        return take(own, sums, after, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OptimizerStep, "take", cut)
        with pytest.raises(UserError, match="cut off"):
            yield
