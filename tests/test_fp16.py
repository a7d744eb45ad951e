"""`training.precision=fp16`: the loss is scaled, an overflow halves it, a resume is exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_steps import config as config
from test_bad_steps import difference, poison, trained
from trainings import cut_off_after

from cluster.loss_scale import FIRST_SCALE, GREATEST_SCALE, GROWTH_STEPS, LEAST_SCALE, LossScale
from pipeline.errors import UserError
from pipeline.training import loss_scaling
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.launch import run_training


def begin_with(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    monkeypatch.setattr(loss_scaling, "LossScale", lambda *given: LossScale(*(given or (scale,))))


def test_the_scale_halves_after_an_overflow_and_doubles_after_many_good_steps() -> None:
    scale = LossScale().after(overflow=True)
    assert scale == LossScale(FIRST_SCALE / 2)
    for _ in range(GROWTH_STEPS - 1):
        scale = scale.after(overflow=False)
    assert scale == LossScale(FIRST_SCALE / 2, GROWTH_STEPS - 1)
    assert scale.after(overflow=False) == LossScale(FIRST_SCALE)
    assert LossScale(LEAST_SCALE).after(overflow=True).value == LEAST_SCALE
    assert LossScale(GREATEST_SCALE, GROWTH_STEPS - 1).after(overflow=False).value == GREATEST_SCALE


@pytest.mark.parametrize("stage", [0, 2])
def test_an_overflow_is_no_bad_step_and_a_resumed_training_keeps_the_scale(
    config: Any, tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(precision="fp16", zero_stage=stage, checkpoint_steps=3)
    poison(monkeypatch, chosen, "gradient", 2, 5)
    whole, tensors = trained(chosen, tmp_path / "whole")
    state = whole.state
    assert (state.overflow_steps, state.bad_steps, state.updates) == (2, 0, 10)
    assert (state.loss_scale, state.loss_scale_steps) == (FIRST_SCALE / 4, 7)

    (tmp_path / "resumed").mkdir()
    with cut_off_after(4):
        run_training(chosen, tmp_path / "resumed", None)
    cut = last_checkpoint(tmp_path / "resumed" / "checkpoints")
    assert cut is not None and cut.state.loss_scale == FIRST_SCALE / 2
    resumed, again = trained(chosen, tmp_path / "resumed")
    assert difference(tensors, again) == 0
    assert resumed.state.metrics["val_loss"] == state.metrics["val_loss"]
    assert resumed.state.loss_scale_steps == state.loss_scale_steps


@pytest.mark.parametrize("stage", [0, 2])
def test_fp16_trains_as_float32_does_but_for_its_products(
    config: Any, tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_with(monkeypatch, 1024.0)  # the first scale is too large for one of the steps
    full, weights = trained(config(zero_stage=stage), tmp_path / "float32")
    half, low = trained(config(zero_stage=stage, precision="fp16"), tmp_path / "fp16")
    assert half.state.overflow_steps == 0
    assert 0 < difference(weights, low) < 0.1  # 12 steps of 0.01
    loss = full.state.metrics["train_loss"]
    assert half.state.metrics["train_loss"] == pytest.approx(loss, rel=0.01)


def test_at_the_least_scale_a_gradient_that_is_not_finite_is_a_bad_step(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_with(monkeypatch, 2.0)
    chosen = config(precision="fp16", zero_stage=2)
    poison(monkeypatch, chosen, "gradient", 3, 4)
    with pytest.raises(UserError, match="the gradient is not finite after step 4"):
        trained(chosen, tmp_path / "out")


def test_a_float32_training_after_one_in_fp16_scales_nothing(config: Any, tmp_path: Path) -> None:
    _, before = trained(config(zero_stage=2), tmp_path / "before")
    trained(config(zero_stage=2, precision="fp16"), tmp_path / "fp16")
    _, after = trained(config(zero_stage=2), tmp_path / "after")
    assert all(torch.equal(before[name], after[name]) for name in before)
