"""The optimizers that a training may use, and the state that each of them keeps."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Hyperparameters(Protocol):
    """What an optimizer is built from; the configuration's section `training` has it."""

    @property
    def learning_rate(self) -> float:
        """Of the first step; the loop sets it anew before each step."""

    @property
    def betas(self) -> tuple[float, float]:
        """How fast running means forget: of the gradient, and of its square."""

    @property
    def eps(self) -> float:
        """What keeps a division from being by zero."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """How an optimizer is built, and what belongs into its checkpoints.

    Attributes:
        build: makes it of torch's parameter groups, which name their `weight_decay`.
        moments: the keys of its state that hold one tensor for each parameter: floating, and of the
            parameter's own shape. Checkpoints hold them in float32 as `MOMENT.PARAMETER`.
        counts_steps: whether its state has `step`, the number of steps taken, as torch's Adam
            has for its bias correction.
        is_elementwise: whether an element's update follows from that element's gradient and state
            alone. ZeRO steps flat slices of many parameters, so only such optimizers may use it.
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
"""By the name of the optimizer's class. The first one is used where nothing else is asked for."""

DEFAULT_OPTIMIZER = next(iter(OPTIMIZERS))


def spec_of(optimizer: torch.optim.Optimizer) -> OptimizerSpec:
    """The table's entry for an optimizer.

    Raises:
        ValueError: the table has none.
    """
    name = type(optimizer).__name__
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name}: is none of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def parameter_of(name: str) -> str | None:
    """The parameter that a checkpoint's tensor `MOMENT.PARAMETER` belongs to.

    Returns:
        The parameter's name; None where no optimizer of the table has such a moment.
    """
    moment, _, parameter = name.partition(".")
    return parameter if moment in _all_moments() else None


def _all_moments() -> Iterable[str]:
    return {moment for spec in OPTIMIZERS.values() for moment in spec.moments}
