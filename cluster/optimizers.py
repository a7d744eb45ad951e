"""The optimizers that a training may use, and the state that each of them keeps.

The configuration is checked against this table, so importing it does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
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

    @property
    def momentum(self) -> float | None:
        """The decay rate of Muon's running mean of the gradient; None takes torch's default."""


HYPERPARAMETERS = ("betas", "eps", "momentum", "weight_decay")
"""The fields of `training` that only some optimizers have."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """How an optimizer is built, and what its checkpoints contain.

    Attributes:
        build: Builds the optimizer from torch's parameter groups, which contain `weight_decay`.
        moments: The keys of its state that hold one tensor for each parameter. The tensor is
            floating-point and has the parameter's shape. Checkpoints hold it in float32 as
            `MOMENT.PARAMETER`. A parameter group may name its own ones under the key `moments`.
        counts_steps: Whether its state has `step`, the number of steps taken. Torch's Adam needs
            it for its bias correction.
        uses: The fields among `HYPERPARAMETERS` that the optimizer has. Others are refused.
        eps: The `eps` of a configuration that gives none.
        reads: What the update of an element depends on, apart from the step. `elements`: only on
            the gradient and state of that element, so ZeRO can update flat slices of many
            parameters. `norms`: also on the norms of its tensor. Under ZeRO such an optimizer must
            have the method `use_slices` of `cluster.lamb.Lamb`. `tensors`: on the whole tensor,
            which no rank has at ZeRO stages 1 to 3.
        splits_matrices: Whether the weights of hidden linear layers are a parameter group of their
            own, with the key `hidden_matrices`.
    """

    build: Callable[[list[dict[str, Any]], Hyperparameters], torch.optim.Optimizer]
    moments: tuple[str, ...]
    counts_steps: bool
    uses: Collection[str] = HYPERPARAMETERS
    eps: float = 1e-8
    reads: Literal["elements", "norms", "tensors"] = "elements"
    splits_matrices: bool = False


def _adamw(groups: list[dict[str, Any]], training: Hyperparameters) -> torch.optim.Optimizer:
    from cluster.adamw import AdamW

    return AdamW(groups, lr=training.learning_rate, betas=training.betas, eps=training.eps)


def _lamb(groups: list[dict[str, Any]], training: Hyperparameters) -> torch.optim.Optimizer:
    from cluster.lamb import Lamb

    return Lamb(groups, lr=training.learning_rate, betas=training.betas, eps=training.eps)


def _muon(groups: list[dict[str, Any]], training: Hyperparameters) -> torch.optim.Optimizer:
    from cluster.muon import Muon

    return Muon(
        groups,
        lr=training.learning_rate,
        betas=training.betas,
        eps=training.eps,
        momentum=training.momentum,
    )


OPTIMIZERS: dict[str, OptimizerSpec] = {
    "adamw": OptimizerSpec(
        build=_adamw,
        moments=("exp_avg", "exp_avg_sq"),
        counts_steps=True,
        uses=("betas", "eps", "weight_decay"),
    ),
    "lamb": OptimizerSpec(
        build=_lamb,
        moments=("mu", "nu"),
        counts_steps=True,
        uses=("betas", "eps", "weight_decay"),
        eps=1e-6,
        reads="norms",
    ),
    "muon": OptimizerSpec(
        build=_muon,
        moments=("momentum_buffer", "exp_avg", "exp_avg_sq"),
        counts_steps=True,
        reads="tensors",
        splits_matrices=True,
    ),
}
"""The optimizers by their names in a configuration: their class names in lower case.

The first one is the default. No two rows have the same moments, so a checkpoint shows which
optimizer wrote it.
"""

DEFAULT_OPTIMIZER = next(iter(OPTIMIZERS))


def name_of(optimizer: torch.optim.Optimizer) -> str:
    """Return the name under which the table has an optimizer, whether or not it has it."""
    return type(optimizer).__name__.lower()


def spec_of(optimizer: torch.optim.Optimizer) -> OptimizerSpec:
    """Return the table's entry for an optimizer.

    Raises:
        ValueError: The table has no entry for it.
    """
    name = name_of(optimizer)
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


def written_by(names: Iterable[str]) -> str | None:
    """Return the optimizer whose moments a checkpoint holds.

    Args:
        names: The names of the checkpoint's tensors, `MOMENT.PARAMETER`.

    Returns:
        The name of the optimizer; None if there is no such one in the table.
    """
    found = {name.partition(".")[0] for name in names}
    return next((name for name, spec in OPTIMIZERS.items() if set(spec.moments) == found), None)


def _all_moments() -> Iterable[str]:
    return {moment for spec in OPTIMIZERS.values() for moment in spec.moments}
