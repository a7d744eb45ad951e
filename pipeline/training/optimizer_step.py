"""The step of the optimizer: taken, or left out if its loss or gradient is bad."""

from dataclasses import replace
from typing import Any

from pipeline.config.training import TrainingConfig
from pipeline.errors import UserError
from pipeline.training.bad_steps import StepGuard, bad_loss
from pipeline.training.checkpoint_files import TrainState, check_finite, not_finite_line
from pipeline.training.ema import WeightAverage
from pipeline.training.loss_scaling import OVERFLOW, LossScaling
from pipeline.training.step_sums import MOST_STEPS, StepSums


class OptimizerStep:
    """Takes the steps of an engine's optimizer, and judges them.

    Where a step must be judged before it is taken, its loss is read. Else the losses are read every
    few steps, and before anything is logged or saved.

    Args:
        training: The configuration of the training.
        engine: DeepSpeed's engine.
        average: The moving average of the weights, which takes in each step; None for none.
    """

    def __init__(
        self, training: TrainingConfig, engine: Any, average: WeightAverage | None
    ) -> None:
        self._training, self._engine, self._average = training, engine, average
        self._scaling = LossScaling(engine) if training.precision == "fp16" else None
        guarded = training.on_bad_step != "fail" or self._scaling is not None
        self._guard = StepGuard(engine) if guarded else None

    def restore(self, state: TrainState) -> None:
        """Take up the loss scale of a state."""
        if self._scaling is not None:
            self._scaling.restore(state)

    def metrics(self) -> dict[str, float]:
        """Return what is logged of the loss scale; nothing without one."""
        return self._scaling.metrics() if self._scaling is not None else {}

    def take(
        self, sums: StepSums, after: TrainState, *, reads: bool
    ) -> tuple[str | None, TrainState]:
        """Take the step, or leave it out. All ranks must call this, and decide alike.

        Args:
            sums: The sums, with those of this step.
            after: The state after the step.
            reads: Whether the sums are needed after this step.

        Returns:
            Why the step was left out, or None; and the state after the step.

        Raises:
            UserError: A step is bad, and `training.on_bad_step` is `fail`.
        """
        if self._guard is None and self._training.spike_factor is None:
            self._take_unjudged(sums, after.step, reads=reads)
            return None, after
        fault, after = self._take_judged(sums, after)
        return fault, self._scaling.kept_in(after) if self._scaling is not None else after

    def _take_unjudged(self, sums: StepSums, step: int, *, reads: bool) -> None:
        self._engine.step()
        if reads or self._engine.skipped_steps or sums.unread >= MOST_STEPS:
            for found in sums.read():
                check_finite("the loss", found.loss, found.step)
                sums.count(found)
            self._check_gradient(step)
        self._update_average()

    def _take_judged(self, sums: StepSums, after: TrainState) -> tuple[str | None, TrainState]:
        training = self._training
        (found,) = sums.read()
        fault = bad_loss(training, found.loss, after.losses, after.step)
        if self._guard is not None:
            fault = self._take_guarded(self._guard, fault, after.step)
            if fault:
                return fault, after
        elif fault:
            raise UserError(fault)
        else:
            self._engine.step()
            self._check_gradient(after.step)
        sums.count(found)
        self._update_average()
        if training.spike_factor is not None:
            losses = (*after.losses, found.loss)[-training.spike_window :]
            after = replace(after, losses=losses)
        return None, after

    def _take_guarded(self, guard: StepGuard, fault: str | None, step: int) -> str | None:
        taken = guard.step(leave_out=fault is not None)
        if self._scaling is not None and not fault:
            fault = self._scaling.after_step(taken=taken)
        fault = fault or (None if taken else not_finite_line("the gradient", step))
        if fault and self._training.on_bad_step == "fail" and fault != OVERFLOW:
            raise UserError(fault)
        return fault

    def _check_gradient(self, step: int) -> None:
        """Refuse a step whose gradients are not finite. DeepSpeed silently skips it."""
        if self._engine.skipped_steps:
            raise UserError(not_finite_line("the gradient", step))

    def _update_average(self) -> None:
        if self._average is not None:
            self._average.update()
