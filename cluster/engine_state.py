"""Restore an engine's weights and optimizer state, at any world size and ZeRO stage, bit for bit.

DeepSpeed's own checkpoints are pickles that load only at the world size and stage that wrote them.
Here each rank saves and restores the ranges of the tensors that it holds (`cluster.fragments`).
DeepSpeed's functions do not serve in two places, which are done here:

- Before the first step there is no optimizer state to be set: it is made here.
- At stages 1 and 2 DeepSpeed links parameters to their state after the step of the first parameter
  group, when the others have no state yet, and never again: they are linked here.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from cluster.errors import ClusterError
from cluster.fragments import (
    Fragment,
    base_optimizer,
    in_memory,
    moment_fragments,
    moment_names,
    moments_by_tensor,
    swapped_state,
    trained_fragments,
    weight_fragments,
)
from cluster.optimizers import OptimizerSpec, name_of, spec_of, written_by
from cluster.parameters_on_nvme import own_part


class TensorSource(Protocol):
    """Tensors by name that can be read in ranges, such as those of a checkpoint."""

    @property
    def names(self) -> set[str]:
        """The names of the tensors."""

    def read(self, name: str, start: int, length: int) -> torch.Tensor:
        """Return a range of a flattened tensor, `[length]`, on the CPU."""


def saved_fragments(engine: Any) -> tuple[list[Fragment], list[Fragment]]:
    """Return what this rank holds of an engine's state. It is loaded inside `in_memory`.

    Returns:
        `(weights, moments)`. There are no moments before the first step.
    """
    base = base_optimizer(engine)
    if not _has_moments(engine, base, spec_of(base)):
        return weight_fragments(engine), []
    _link_moments(engine, base)
    return weight_fragments(engine), moment_fragments(engine)


def restore_state(
    engine: Any, weights: TensorSource, moments: TensorSource | None, *, step: int
) -> None:
    """Restore a saved state, whatever world size and stage it came from.

    Each rank reads only what it holds. All ranks must call this (a collective). The engine may be
    new, or may have taken steps.

    Args:
        engine: An engine of the same model.
        weights: The weights and buffers.
        moments: The moments. If there are none, the optimizer starts anew.
        step: The optimizer steps so far, which Adam's bias correction needs.

    Raises:
        ClusterError: The moments are another optimizer's.
    """
    base = base_optimizer(engine)
    names = moments.names if moments is not None else set()
    if names:
        _check_moments(engine, base, names)
    with in_memory(engine):
        if names or _has_moments(engine, base, spec_of(base)):
            _make_moments(engine, base, spec_of(base), step)
        fill(weight_fragments(engine), weights)
        if moments is not None and names:
            fill(moment_fragments(engine), moments)
    weights_to_model(engine)


def fill(fragments: list[Fragment], source: TensorSource) -> None:
    """Read the values of fragments, one after the other."""
    for fragment in fragments:
        fragment.store(source.read(fragment.name, fragment.start, fragment.length))


def weights_to_model(engine: Any) -> None:
    """Let the forward pass use the float32 weights that the optimizer steps, after a change.

    All ranks must call this (a collective).
    """
    zero = engine.optimizer
    match engine.zero_optimization_stage():
        case 0:  # they are the same tensors
            pass
        case 3:
            zero.checkpoint_event_prologue()  # divides the parameters that are kept whole
            with torch.no_grad(), in_memory(engine):
                for fragment in trained_fragments(engine):
                    own: Any = engine.module.get_parameter(fragment.name)
                    with own_part(own, changes=True) as part:
                        part.narrow(0, 0, fragment.length).copy_(fragment.load())
            zero.checkpoint_event_epilogue()  # gathers them again
        case _:
            zero.update_lp_params()


def flat_tensors(engine: Any) -> Iterator[torch.Tensor]:
    """The float32 tensors that the base optimizer steps, on this rank."""
    match engine.zero_optimization_stage():
        case 0:
            yield from filter(is_trained, engine.module.parameters())
        case 1 | 2:
            yield from engine.optimizer.single_partition_of_fp32_groups
        case _:
            yield from engine.optimizer.fp32_partitioned_groups_flat


def is_trained(parameter: torch.Tensor) -> bool:
    """Return whether a parameter is trained, which it is unless it is frozen."""
    return parameter.requires_grad


def _check_moments(engine: Any, base: torch.optim.Optimizer, found: set[str]) -> None:
    spec, keys = spec_of(base), moments_by_tensor(base)
    expected = {
        f"{key}.{name}"
        for name, parameter in engine.module.named_parameters()
        for key in moment_names(parameter, keys, spec)
    }
    if odd := sorted(expected ^ found):
        writer = written_by(found)
        own = f", but that of {writer}" if writer not in (None, name_of(base)) else ""
        raise ClusterError(
            f"the checkpoint's optimizer state is not that of {name_of(base)}{own} "
            f"({', '.join(odd)[:200]}); train with the optimizer that wrote it"
        )


def _has_moments(engine: Any, base: torch.optim.Optimizer, spec: OptimizerSpec) -> bool:
    keys = moments_by_tensor(base)
    return all(
        isinstance(base.state.get(flat, {}).get(key), torch.Tensor)
        for flat in flat_tensors(engine)
        for key in keys.get(flat, spec.moments)
    )


def _make_moments(engine: Any, base: torch.optim.Optimizer, spec: OptimizerSpec, step: int) -> None:
    """Give the optimizer a state of zeros, as if it had taken so many steps."""
    keys = moments_by_tensor(base)
    for flat in flat_tensors(engine):
        own = keys.get(flat, spec.moments)
        swapped = swapped_state(engine)
        if swapped is None or not swapped.reset_moments(flat, own):
            base.state[flat] = {key: torch.zeros_like(flat) for key in own}
        if spec.counts_steps:
            base.state[flat]["step"] = torch.tensor(float(step))
    _link_moments(engine, base)


def _link_moments(engine: Any, base: torch.optim.Optimizer) -> None:
    """Let parameters find their state at stages 1 and 2."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if engine.zero_optimization_stage() in (1, 2):
        zero = engine.optimizer
        for group, flat in zip(zero.bit16_groups, flat_tensors(engine), strict=True):
            lazy_init_hp_params_optimizer_state(group, flat, base.state)


__all__ = [
    "TensorSource",
    "fill",
    "flat_tensors",
    "in_memory",
    "is_trained",
    "restore_state",
    "saved_fragments",
    "trained_fragments",
    "weights_to_model",
]
