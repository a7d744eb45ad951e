"""The optimizers that a training may use, and the state that each of them keeps."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Hyperparameters(Protocol):
    """The values that an optimizer is built from: the configuration's section `training`."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first step. The loop sets it before each step."""

    @property
    def betas(self) -> tuple[float, float]:
        """The decay rates of the running means of the gradient and of its square."""

    @property
    def eps(self) -> float:
        """The constant that prevents a division by zero."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """How an optimizer is built, and what its checkpoints contain.

    Attributes:
        build: Builds the optimizer from torch's parameter groups, which contain `weight_decay`.
        moments: The keys of its state that hold one tensor for each parameter. The tensor is
            floating-point and has the parameter's shape. Checkpoints hold it in float32 as
            `MOMENT.PARAMETER`.
        counts_steps: Whether its state has `step`, the number of steps taken. Torch's Adam needs
            it for its bias correction.
        is_elementwise: Whether the update of an element depends only on the gradient and state of
            that element. ZeRO updates flat slices of many parameters, so it accepts only such
            optimizers.
    """

    build: Callable[[list[dict[str, Any]], Hyperparameters], torch.optim.Optimizer]
    moments: tuple[str, ...]
    counts_steps: bool
    is_elementwise: bool = True


def _adamw(groups: list[dict[str, Any]], training: Hyperparameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups, lr=training.learning_rate, betas=training.betas, eps=training.eps
    )


OPTIMIZERS: dict[str, OptimizerSpec] = {
    "AdamW": OptimizerSpec(build=_adamw, moments=("exp_avg", "exp_avg_sq"), counts_steps=True),
}
"""The optimizers by the name of their class. The first one is the default."""

DEFAULT_OPTIMIZER = next(iter(OPTIMIZERS))


def spec_of(optimizer: torch.optim.Optimizer) -> OptimizerSpec:
    """Return the table's entry for an optimizer.

    Raises:
        ValueError: The table has no entry for it.
    """
    name = type(optimizer).__name__
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name}: is none of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def parameter_of(name: str) -> str | None:
    """Return the parameter to which a checkpoint's tensor `MOMENT.PARAMETER` belongs.

    Args:
        name: The name of the tensor.

    Returns:
        The name of the parameter; None if no optimizer of the table has such a moment.
    """
    moment, _, parameter = name.partition(".")
    return parameter if moment in _all_moments() else None


def _all_moments() -> Iterable[str]:
    return {moment for spec in OPTIMIZERS.values() for moment in spec.moments}
