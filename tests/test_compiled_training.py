"""`training.compile` in DeepSpeed's engine, with all that it may be combined with at once.

In float32 it is tested with texts, in `test_train_modalities`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_bad_steps import config as config
from test_bad_steps import difference, trained
from test_fp16 import begin_with

from pipeline.training.optimizer_step import OptimizerStep

STEPS_OF_EPOCH = 6
ALL: dict[str, Any] = {
    "zero_stage": 2,
    "precision": "fp16",
    "activation_checkpointing": 1.0,
    "offload": {"optimizer": "cpu"},
    "gradient_accumulation_steps": 2,
    "ema_decay": 0.5,
    "on_bad_step": "skip",
}


@pytest.mark.skipif(
    shutil.which("gcc") is None and shutil.which("g++") is None,
    reason="inductor writes C++, and there is no compiler for it here",
)
def test_it_compiles_each_shape_once_and_trains_as_without(
    config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters  # takes a second, which a collection need not spend

    begin_with(monkeypatch, 1024.0)  # with the first scale, one of the steps overflows
    plain, weights = trained(config(**ALL), tmp_path / "plain")
    counters.clear()
    graphs: list[int] = []
    take = OptimizerStep.take

    def watched(step: OptimizerStep, *arguments: Any, **named: Any) -> Any:
        graphs.append(counters["stats"]["unique_graphs"])
        return take(step, *arguments, **named)

    monkeypatch.setattr(OptimizerStep, "take", watched)
    compiled, others = trained(config(**ALL, compile="default"), tmp_path / "compiled")

    assert compiled.state.overflow_steps == 0
    # The first step compiles the training's graph, and the first evaluation its own.
    assert graphs == [1] * STEPS_OF_EPOCH + [2] * STEPS_OF_EPOCH
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert 0 < difference(weights, others) < 0.1  # 12 steps of 0.01, with products in float16
    for name in ("train_loss", "val_loss"):
        expected = pytest.approx(plain.state.metrics[name], rel=1e-2)
        assert compiled.state.metrics[name] == expected
