"""`training.on_bad_step`: a bad step ends a training, is skipped, or is rolled back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_runs import some_rows, table_config, write_table_set
from saved_checkpoints import load

from cluster.adamw import AdamW
from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.training import optimizer_step
from pipeline.training.augmentation.draws import step_seed
from pipeline.training.bad_steps import bad_loss
from pipeline.training.checkpoint_files import Checkpoint
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.launch import run_training
from pipeline.training.objectives.classification import Classification

BAD = 6
"""The bad step, counted from 1. An epoch has 6 steps, and a training 2 epochs."""

MakeConfig = Callable[..., Config]
Weights = dict[str, torch.Tensor]


@pytest.fixture
def config(tmp_path: Path) -> MakeConfig:
    base = with_values(
        table_config(tmp_path, "bad"),
        {
            "training.batch_size": 8,
            "training.epochs": 2,
            "training.learning_rate": 1e-2,
            "training.schedule.warmup_epochs": 0,
            "training.checkpoint_steps": 4,
            "training.spike_window": 3,
            "training.zero_stage": 0,
        },
    )
    write_table_set(base, some_rows(0, 48), some_rows(48, 60))

    def make(**training: Any) -> Config:
        return with_values(base, {f"training.{key}": value for key, value in training.items()})

    return make


def trained(config: Config, folder: Path) -> tuple[Checkpoint, Weights]:
    folder.mkdir(exist_ok=True)
    run_training(config, folder, None)
    last = last_checkpoint(folder / "checkpoints")
    assert last is not None
    return last, load(last, "weights") | load(last, "optimizer")


def poison(monkeypatch: pytest.MonkeyPatch, config: Config, kind: str, *steps: int) -> None:
    """Make the loss or the gradient of some steps bad. A step that is repeated is bad again."""
    losses = Classification.losses
    per_epoch = 6
    seeds = {step_seed(config.seed, *divmod(step - 1, per_epoch), 0) for step in steps}

    def poisoned(self: Any, outputs: Any, batch: Any, *, training: bool) -> torch.Tensor:
        values = losses(self, outputs, batch, training=training)
        if not training or batch.seed not in seeds:
            return values
        if kind == "gradient":
            values.register_hook(lambda gradient: gradient * float("inf"))
            return values
        return values * {"nan": float("nan"), "inf": float("inf"), "spike": 1000.0}[kind]

    monkeypatch.setattr(Classification, "losses", poisoned)


def without_steps(
    monkeypatch: pytest.MonkeyPatch, config: Config, folder: Path, *left_out: int
) -> tuple[Checkpoint, Weights]:
    """Train at ZeRO stage 0, where the optimizer does nothing in some calls."""
    step = AdamW.step
    calls = 0

    def counted(self: Any, closure: Any = None) -> Any:
        nonlocal calls
        calls += 1
        return None if calls in left_out else step(self, closure)

    with monkeypatch.context() as patch:
        patch.setattr(AdamW, "step", counted)
        return trained(config, folder)


def same(
    stage: int, found: tuple[Checkpoint, Weights], expected: tuple[Checkpoint, Weights]
) -> None:
    """Another stage agrees to rounding, which Adam makes large where a gradient is 0."""
    if stage == 0:
        assert difference(found[1], expected[1]) == 0
    for name in ("val_loss", "val_accuracy"):
        metrics, wanted = found[0].state.metrics, expected[0].state.metrics
        assert metrics[name] == pytest.approx(wanted[name], rel=1e-5)


def difference(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize(
    ("kind", "stage"),
    [("nan", 0), ("inf", 0), ("gradient", 0), ("spike", 0), ("nan", 1), ("spike", 1),
     ("gradient", 2), ("spike", 2), ("gradient", 3), ("spike", 3)],
)  # fmt: skip
def test_a_skipped_step_leaves_the_weights_as_they_were(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stage: int
) -> None:
    expected = without_steps(monkeypatch, config(), tmp_path / "expected", BAD)
    chosen = config(on_bad_step="skip", zero_stage=stage, spike_factor=20.0)
    poison(monkeypatch, chosen, kind, BAD)
    last, weights = trained(chosen, tmp_path / "skip")
    same(stage, (last, weights), expected)
    state = last.state
    assert (state.step, state.bad_steps, state.lost_steps, state.updates) == (12, 1, 1, 11)
    assert len(state.losses) == 3
    notes = json.loads((tmp_path / "skip" / "progress.json").read_text())["notes"]
    assert any("left out (1 of training.max_bad_steps=10)" in note for note in notes)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_rollback_returns_to_the_last_checkpoint_and_goes_on_with_the_next_batch(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    expected = without_steps(monkeypatch, config(), tmp_path / "expected", 5, BAD)
    chosen = config(on_bad_step="rollback", zero_stage=stage)
    poison(monkeypatch, chosen, "nan", BAD)
    last, weights = trained(chosen, tmp_path / "rollback")
    same(stage, (last, weights), expected)
    assert (last.state.bad_steps, last.state.lost_steps) == (1, 2)


@pytest.mark.parametrize("stage", [0, 2])
def test_before_the_first_checkpoint_a_rollback_returns_to_the_start(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    expected = without_steps(monkeypatch, config(), tmp_path / "expected", 1, 2, 3)
    chosen = config(on_bad_step="rollback", zero_stage=stage)
    poison(monkeypatch, chosen, "gradient", 3)
    last, weights = trained(chosen, tmp_path / "rollback")
    same(stage, (last, weights), expected)
    assert last.state.lost_steps == 3


@pytest.mark.parametrize("mode", ["skip", "rollback"])
@pytest.mark.parametrize("cut_at", [6, 8, 11])
def test_a_training_that_was_cut_off_ends_with_the_same_weights(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, cut_at: int
) -> None:
    chosen = config(on_bad_step=mode, spike_factor=20.0, zero_stage=2)
    poison(monkeypatch, chosen, "spike", BAD, 10)
    whole, expected = trained(chosen, tmp_path / "whole")

    def cut(training: Any, loss: float, losses: Any, step: int) -> str | None:
        if step > cut_at:
            raise UserError("cut off")
        return bad_loss(training, loss, losses, step)

    with monkeypatch.context() as patch:
        patch.setattr(optimizer_step, "bad_loss", cut)
        with pytest.raises(UserError, match="cut off"):
            trained(chosen, tmp_path / "cut")
    resumed, weights = trained(chosen, tmp_path / "cut")
    assert difference(weights, expected) == 0
    assert resumed.state.bad_steps == whole.state.bad_steps == 2
    assert resumed.state.lost_steps == whole.state.lost_steps
    assert resumed.state.losses == whole.state.losses


@pytest.mark.parametrize("mode", ["skip", "rollback"])
def test_more_bad_steps_than_allowed_end_the_training_with_the_line_of_a_failure(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    chosen = config(on_bad_step=mode, max_bad_steps=2)
    poison(monkeypatch, chosen, "nan", 2, 3, 5)
    with pytest.raises(UserError, match=r"^the loss \(nan\) is not finite after step 5; lower"):
        trained(chosen, tmp_path / "run")


def test_a_spike_ends_a_training_that_does_not_skip(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(spike_factor=20.0)
    poison(monkeypatch, chosen, "spike", 3, BAD)  # before step 4 there is no median
    with pytest.raises(UserError, match=r"of step 6 is above training\.spike_factor=20 times"):
        trained(chosen, tmp_path / "run")
    last = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert last is not None and last.state.step == 4


def test_without_a_factor_nothing_is_a_spike(config: MakeConfig) -> None:
    training = config().training
    assert bad_loss(training, 1e30, [0.1] * 3, 4) is None
    assert bad_loss(config(spike_factor=2.0).training, 0.2, [0.1] * 3, 4) is None
    assert bad_loss(config(spike_factor=2.0).training, 0.21, [0.1, 9.0, 0.1], 4) is not None
