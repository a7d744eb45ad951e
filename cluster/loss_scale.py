"""Dynamic loss scaling for fp16: multiply the loss so that small gradients do not become zero.

It is done here and not by DeepSpeed, whose scaler for autocast does not work with ZeRO: at stages 1
to 3 it never learns of an overflow, because DeepSpeed leaves the step out before asking it, and it
clips gradients while they are scaled. It would also keep its state out of our checkpoints.

At stages 1 to 3, DeepSpeed is given the scale (`override_loss_scale`). It multiplies the loss,
divides the gradients before they are clipped, and leaves out a step whose gradient is not finite.
At stage 0, the same is done by `_FixedScale` and by the guard of the optimizer's step.
"""

from dataclasses import dataclass
from typing import Any

import torch

FIRST_SCALE = 2.0**16
LEAST_SCALE = 1.0
GREATEST_SCALE = 2.0**24
GROWTH_STEPS = 2000


@dataclass(frozen=True)
class LossScale:
    """The scale of the loss, and what its next value depends on.

    Attributes:
        value: The factor of the loss, a power of two. Multiplying by it does not round.
        good_steps: The number of steps without an overflow since the scale changed.
    """

    value: float = FIRST_SCALE
    good_steps: int = 0

    def after(self, *, overflow: bool) -> "LossScale":
        """Return the scale after a step: half after an overflow, twice after 2,000 good steps.

        Args:
            overflow: Whether the step was left out because its gradient was not finite.
        """
        if overflow:
            return LossScale(max(self.value / 2, LEAST_SCALE))
        if self.good_steps + 1 < GROWTH_STEPS:
            return LossScale(self.value, self.good_steps + 1)
        return LossScale(min(self.value * 2, GREATEST_SCALE))

    @property
    def is_least(self) -> bool:
        """Whether the scale cannot fall further, so that an overflow is not the scale's fault."""
        return self.value <= LEAST_SCALE


def drop_scalers(engine: Any) -> None:
    """Take from a new engine the scalers that DeepSpeed made."""
    engine.torch_autocast_z0_gradscaler = None
    if engine.zero_optimization_stage():
        engine.optimizer.torch_autocast_gradscaler = None


def set_loss_scale(engine: Any, value: float) -> None:
    """Let an engine scale the losses of the next steps.

    Args:
        engine: DeepSpeed's engine.
        value: The factor of the loss.
    """
    if engine.zero_optimization_stage():
        engine.optimizer.override_loss_scale(value)
    else:
        engine.torch_autocast_z0_gradscaler = _FixedScale(value)


class _FixedScale:
    """What the engine takes for torch's `GradScaler` at stage 0. It does not look for overflows."""

    def __init__(self, value: float) -> None:
        self._value = value
        self._is_unscaled = False

    def get_scale(self) -> float:
        """Return the factor of the gradients until they are unscaled."""
        return self._value

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss multiplied by the scale."""
        return loss * self._value

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale. The engine does it before it clips them."""
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self._value)
        self._is_unscaled = True

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's step with unscaled gradients."""
        if not self._is_unscaled:
            self.unscale_(optimizer)
        optimizer.step()

    def update(self) -> None:
        """Begin the next step with the same scale."""
        self._is_unscaled = False
