"""The loss scale of a training in fp16: set in the engine, changed by steps, kept in the state."""

from dataclasses import replace
from typing import Any

from cluster.loss_scale import LossScale, set_loss_scale
from pipeline.training.checkpoint_files import TrainState

OVERFLOW = "overflow"
"""What a step is left out for if its scaled gradient was too large for float16."""


class LossScaling:
    """Scales the losses of an engine, and counts the steps that overflow.

    An overflow is no bad step: it halves the scale, and the training goes on with the next batch.
    At the least scale, a gradient that is not finite is a bad step as in any other precision.

    Args:
        engine: DeepSpeed's engine, in fp16.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._scale = LossScale()
        self._overflows = 0

    def restore(self, state: TrainState) -> None:
        """Take up the scale of a state; that of a new training is the first one."""
        if state.loss_scale is not None:
            self._scale = LossScale(state.loss_scale, state.loss_scale_steps)
        self._overflows = state.overflow_steps
        set_loss_scale(self._engine, self._scale.value)

    def after_step(self, *, taken: bool) -> str | None:
        """Change the scale after a step whose loss was finite.

        Args:
            taken: Whether the gradient was finite, and the step was taken.

        Returns:
            `OVERFLOW` if the step was left out because of the scale; None if it was taken, or if
            it is a bad step.
        """
        overflow = not taken and not self._scale.is_least
        if not taken and not overflow:
            return None
        before, self._scale = self._scale, self._scale.after(overflow=overflow)
        if self._scale.value != before.value:
            set_loss_scale(self._engine, self._scale.value)
        self._overflows += overflow
        return OVERFLOW if overflow else None

    def kept_in(self, state: TrainState) -> TrainState:
        """Return a state with the scale, as it is now."""
        return replace(
            state,
            loss_scale=self._scale.value,
            loss_scale_steps=self._scale.good_steps,
            overflow_steps=self._overflows,
        )

    def metrics(self) -> dict[str, float]:
        """Return what is logged: the scale, and the number of overflows so far."""
        return {"loss_scale": self._scale.value, "overflow_steps": float(self._overflows)}
