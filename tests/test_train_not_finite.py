"""A training that diverges ends with one line that names the step; nothing of it is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.training.checkpoint_files import TrainState, check_finite
from pipeline.training.checkpoints import list_names
from pipeline.training.loop import TrainLoop
from pipeline.training.micro_steps import MicroSteps
from pipeline.training.train import train

MakeConfig = Callable[..., Config]


@pytest.fixture
def config(make_config: MakeConfig, digit_shards: Path, tmp_path: Path) -> MakeConfig:
    def make(*overrides: str) -> Config:
        return make_config(
            tmp_path / "out", f"shards={digit_shards}", "cluster.num_workers=0", *overrides
        )

    return make


def ends(config: Config, console: Console, told: str) -> None:
    """The training ends with this line, as a failed run that has no metric which is not finite."""
    with pytest.raises(UserError, match=told) as caught:
        train(config, console)
    assert len(str(caught.value).splitlines()) == 1
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert all(torch.isfinite(torch.tensor(value)) for value in run.data.metrics.values())
    assert "perceiver.checkpoint" not in run.data.tags


def names(config: Config) -> list[str]:
    return list_names(config.folder / "train" / "checkpoints")


@pytest.mark.parametrize("stage", [0, 2])
def test_a_loss_that_is_not_finite_ends_the_training_at_its_step(
    config: MakeConfig, console: Console, stage: int
) -> None:
    # Before any step that log_steps=10 would look at.
    chosen = config("training.learning_rate=1e30", f"training.zero_stage={stage}",
                    "training.checkpoint_steps=1")  # fmt: skip
    ends(chosen, console, r"is not finite after step 2; lower training\.learning_rate")
    assert names(chosen) == ["step-00000001"], "huge, and finite"


@pytest.mark.parametrize("stage", [0, 2])
def test_a_gradient_that_overflows_ends_the_training_though_the_loss_is_finite(
    config: MakeConfig, console: Console, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    run = MicroSteps.run
    steps = 0

    def overflowing(own: MicroSteps, *arguments: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps < 9:
            return run(own, *arguments)
        weight = next(p for p in own.engine.module.parameters() if p.requires_grad)
        hook = weight.register_hook(lambda gradient: gradient * float("inf"))
        try:
            return run(own, *arguments)
        finally:
            hook.remove()

    monkeypatch.setattr(MicroSteps, "run", overflowing)
    ends(config(f"training.zero_stage={stage}"), console, "is not finite after step (9|10); lower")
    assert names(config()) == ["step-00000007"], "the checkpoint before it is kept"


def test_a_validation_loss_that_is_not_finite_ends_the_training(
    config: MakeConfig, console: Console
) -> None:
    # One step, whose own loss is finite, takes the weights beyond float32.
    chosen = config("training.batch_size=240", "training.epochs=1", "training.learning_rate=1e30")
    ends(chosen, console, r"val_loss \((nan|inf)\) is not finite after step 1")
    assert names(chosen) == []


def test_weights_that_are_not_finite_are_never_a_checkpoint(
    config: MakeConfig, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unnoticed(loop: TrainLoop, _: TrainState) -> dict[str, float]:
        with torch.no_grad():  # after the last look at the loss
            next(p for p in loop.engine.module.parameters() if p.requires_grad)[0] = float("inf")
        return {"val_loss": 1.0, "val_accuracy": 1.0}

    monkeypatch.setattr(TrainLoop, "evaluate", unnoticed)
    chosen = config("training.zero_stage=0", "training.epochs=1")
    ends(chosen, console, r"\w is not finite after step 7")
    assert names(chosen) == []


def test_a_training_that_diverged_goes_on_from_the_checkpoint_before(
    config: MakeConfig, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_epoch = TrainLoop.run_epoch

    def diverging(loop: TrainLoop, state: TrainState) -> TrainState:
        if state.epoch:
            with torch.no_grad():
                for parameter in loop.engine.module.parameters():
                    parameter.fill_(float("nan"))
        return run_epoch(loop, state)

    monkeypatch.setattr(TrainLoop, "run_epoch", diverging)
    chosen = config()
    ends(chosen, console, r"the loss \(nan\) is not finite after step 8")
    assert names(chosen) == ["step-00000007"]
    monkeypatch.setattr(TrainLoop, "run_epoch", run_epoch)
    assert train(chosen, console)["epochs"] == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_every_value_that_is_no_finite_number_is_seen(value: float) -> None:
    told = r"^the loss \(-?(nan|inf)\) is not finite after step 3; lower"
    with pytest.raises(UserError, match=told):
        check_finite("the loss", value, 3)
    check_finite("the loss", 3e38, 3)


@pytest.mark.parametrize("field", ["learning_rate=1e39", "weight_decay=1e39"])
def test_numbers_that_float32_cannot_hold_are_refused(config: MakeConfig, field: str) -> None:
    with pytest.raises(UserError, match=r"training\.\w+: is 1e\+39; must be less than or equal"):
        config(f"training.{field}")
