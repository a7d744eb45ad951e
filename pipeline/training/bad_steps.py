"""Optimizer steps whose loss or gradient is bad: the training fails, skips them, or rolls back."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from cluster.engine_state import base_optimizer
from pipeline.config.training import TrainingConfig
from pipeline.training.checkpoint_files import not_finite_line


def bad_loss(
    training: TrainingConfig, loss: float, losses: Sequence[float], step: int
) -> str | None:
    """Return why a step's loss is bad, as the line that ends a training; None if it is good.

    Args:
        training: The configuration of the training.
        loss: The mean loss over all samples of the step, the same number on every rank.
        losses: The losses of the last good steps, at most `spike_window` of them.
        step: The step, counted from 1.
    """
    if not math.isfinite(loss):
        return not_finite_line(f"the loss ({loss})", step)
    if training.spike_factor is None or len(losses) < training.spike_window:
        return None
    median = statistics.median(losses)
    if loss <= training.spike_factor * median:
        return None
    return (
        f"the loss ({loss:g}) of step {step} is above training.spike_factor="
        f"{training.spike_factor:g} times {median:g}, the median of the last "
        f"{training.spike_window} steps; lower training.learning_rate, or raise "
        "training.spike_factor. The checkpoints before it are kept"
    )


class StepGuard:
    """Keep an engine from changing the weights in a step that is bad.

    The engine takes its step as always, so it clears its gradients and counts its micro-batches.
    Only the optimizer in it does nothing: weights, moments and Adam's count of steps stay.

    All ranks decide alike: the loss is a sum over all ranks, DeepSpeed compares the gradients over
    all ranks at ZeRO stages 1 to 3, and at stage 0 all ranks have the same gradients.

    Args:
        engine: DeepSpeed's engine.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._optimizer = base_optimizer(engine)
        self._step = self._optimizer.step
        self._leave_out = self._left_out = False
        # ZeRO calls the method of the instance.
        self._optimizer.step = self._guarded  # type: ignore[method-assign]  # of this one

    def step(self, *, leave_out: bool) -> bool:
        """Take the engine's step, and return whether it has changed the weights.

        Args:
            leave_out: Whether the step is known to be bad. A gradient that is not finite is found
                here.
        """
        overflows = self._engine.skipped_steps
        self._leave_out, self._left_out = leave_out, False
        self._engine.step()
        self._leave_out = False
        return not self._left_out and bool(self._engine.skipped_steps == overflows)

    def _guarded(self, *arguments: Any, **named: Any) -> Any:
        if not self._leave_out:
            whole = self._engine.zero_optimization_stage() == 0
            self._left_out = whole and not self._gradients_are_finite()
            if not self._left_out:
                return self._step(*arguments, **named)
        self._left_out = True
        return None

    def _gradients_are_finite(self) -> bool:
        groups = self._optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
