"""An engine's weights and optimizer state, complete and by parameter name, at any ZeRO stage.

DeepSpeed's own checkpoints are pickles that load only at the world size and stage that wrote them.
Here, the float32 weight and the Adam moments of every parameter are gathered to their full shape.
So a run can continue with another number of workers or at another stage, bit for bit.

ZeRO stores each parameter group as flat float32 tensors, and a rank owns a part of each:

====== ==============================================================================
stage  a rank's part of a parameter
====== ==============================================================================
0      all of it, in the parameter itself
1, 2   the overlap of the parameter with the rank's slice of its group's flat tensor
3      an equal slice of the parameter, padded at the end
====== ==============================================================================
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHT = "weight"


@dataclass(frozen=True)
class _Fragment:
    """A rank's part of a parameter: `flat[offset:][:numel]` is `parameter[start:][:numel]`."""

    flat: torch.Tensor
    offset: int
    start: int
    numel: int


def gather_state(engine: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gather the complete state on every rank. All ranks must call this (a collective).

    Returns:
        `(weights, moments)`, float32 on the CPU. Weights have the names of parameters and buffers.
        Moments are named `exp_avg.NAME` and `exp_avg_sq.NAME`; there are none before the first
        step.
    """
    base = _base_optimizer(engine)
    weights: dict[str, torch.Tensor] = {}
    moments: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        fragment = _fragment(engine, parameter)
        shape = _full_shape(parameter)
        weights[name] = _gather(engine, fragment, shape, WEIGHT, base)
        if _has_moments(engine, base):
            for key in MOMENTS:
                moments[f"{key}.{name}"] = _gather(engine, fragment, shape, key, base)
    persistent = engine.module.state_dict().keys()
    for name, buffer in engine.module.named_buffers():
        if name in persistent:
            weights[name] = buffer.detach().cpu().clone()
    return weights, moments


def restore_state(
    engine: Any,
    weights: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
    *,
    step: int,
) -> None:
    """Restore a gathered state, whatever world size and stage it came from.

    The module must have loaded `weights` before the engine was made. This copies them into the
    engine's own float32 tensors.

    Args:
        engine: A new engine of the same model.
        weights: The weights from `gather_state`.
        moments: The moments from `gather_state`.
        step: The optimizer steps so far, which Adam's bias correction needs.
    """
    base = _base_optimizer(engine)
    if moments:
        for flat in _flat_tensors(engine):
            base.state[flat] = {
                "step": torch.tensor(float(step)),
                **{key: torch.zeros_like(flat) for key in MOMENTS},
            }
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            fragment = _fragment(engine, parameter)
            if fragment is None:
                continue
            _scatter(fragment, fragment.flat, weights[name])
            for key in MOMENTS if moments else ():
                _scatter(fragment, base.state[fragment.flat][key], moments[f"{key}.{name}"])


def _base_optimizer(engine: Any) -> torch.optim.Optimizer:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _full_shape(parameter: Any) -> torch.Size:
    return parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape


def _flat_tensors(engine: Any) -> Iterator[torch.Tensor]:
    """Yield the float32 tensors that the base optimizer updates on this rank."""
    match engine.zero_optimization_stage():
        case 0:
            yield from engine.module.parameters()
        case 1 | 2:
            yield from engine.optimizer.single_partition_of_fp32_groups
        case _:
            yield from engine.optimizer.fp32_partitioned_groups_flat


def _fragment(engine: Any, parameter: Any) -> _Fragment | None:
    """Return this rank's part of `parameter`, or None if it has no part."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return _Fragment(parameter, 0, 0, parameter.numel())
    zero = engine.optimizer
    if stage in (1, 2):
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        within, part = mapping.hp_fragment_address, mapping.lp_fragment_address
        flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        return _Fragment(flat, within.start, part.start, part.numel)
    group, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
    start = padded * dist.get_rank()
    numel = min(padded, parameter.ds_numel - start)
    if numel <= 0:
        return None
    return _Fragment(zero.fp32_partitioned_groups_flat[group], int(offset), start, numel)


def _has_moments(engine: Any, base: torch.optim.Optimizer) -> bool:
    return all("exp_avg" in base.state.get(flat, {}) for flat in _flat_tensors(engine))


def _gather(
    engine: Any,
    fragment: _Fragment | None,
    shape: torch.Size,
    key: str,
    base: torch.optim.Optimizer,
) -> torch.Tensor:
    if engine.zero_optimization_stage() == 0:
        assert fragment is not None
        whole = fragment.flat if key == WEIGHT else base.state[fragment.flat][key]
        return whole.detach().float().cpu().clone()
    whole = torch.zeros(shape.numel(), dtype=torch.float32, device=engine.device)
    if fragment is not None:
        source = fragment.flat if key == WEIGHT else base.state[fragment.flat][key]
        part = source.detach().narrow(0, fragment.offset, fragment.numel)
        whole.narrow(0, fragment.start, fragment.numel).copy_(part)
    dist.all_reduce(whole)  # one rank owns each element; the other ranks add zero
    return whole.reshape(shape).cpu()


def _scatter(fragment: _Fragment, target: torch.Tensor, whole: torch.Tensor) -> None:
    part = whole.flatten().narrow(0, fragment.start, fragment.numel)
    target.view(-1).narrow(0, fragment.offset, fragment.numel).copy_(part)
