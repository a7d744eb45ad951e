"""An engine's weights and optimizer state, complete and by parameter name, at any ZeRO stage.

DeepSpeed's own checkpoints are pickles that load only at the world size and stage that wrote them.
Here, the float32 weight and the optimizer's moments of every parameter are gathered to their full
shape. So a run can continue with another number of workers or at another stage, bit for bit.

DeepSpeed's public functions gather and set the state of a parameter at stages 1 to 3. They do not
serve in four places, which are done here:

- At stage 0 DeepSpeed has no state of its own; its functions return None.
- Before the first step there is no state to be set: it is made here.
- At stages 1 and 2 DeepSpeed links parameters to their state after the step of the first parameter
  group, when the others have no state yet, and never again: they are linked here.
- At stage 3 `safe_set_full_…` fails for a parameter that the ranks cannot share evenly, because
  it slices the parameter without the padding. Each rank sets its own slice instead.

Parameters without `requires_grad` are frozen: their weights are part of the state, and they have no
moments. DeepSpeed keeps no float32 copies of them, so the model's own are read and written.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from cluster.errors import ClusterError
from cluster.optimizers import OptimizerSpec, name_of, spec_of, written_by


def gather_state(engine: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gather the complete state on every rank. All ranks must call this (a collective).

    Returns:
        `(weights, moments)`, float32 on the CPU. Weights have the names of parameters and buffers.
        Moments are named `MOMENT.PARAMETER`, such as `exp_avg.head.bias`; there are none before
        the first step, and none of frozen parameters.
    """
    base = base_optimizer(engine)
    spec = spec_of(base)
    keys = _moments_by_tensor(base)
    has_moments = _has_moments(engine, base, spec)
    if has_moments:
        _link_moments(engine, base)
    weights: dict[str, torch.Tensor] = {}
    moments: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        weights[name] = _whole(engine, parameter, base, None)
        for key in _keys(parameter, keys, spec) if has_moments else ():
            moments[f"{key}.{name}"] = _whole(engine, parameter, base, key)
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

    Raises:
        ClusterError: the moments are another optimizer's.
    """
    base = base_optimizer(engine)
    spec = spec_of(base)
    keys = _moments_by_tensor(base)
    expected = {
        f"{key}.{name}"
        for name, parameter in engine.module.named_parameters()
        for key in _keys(parameter, keys, spec)
    }
    if moments and (odd := sorted(expected ^ moments.keys())):
        writer = written_by(moments)
        own = f", but that of {writer}" if writer not in (None, name_of(base)) else ""
        raise ClusterError(
            f"the checkpoint's optimizer state is not that of {name_of(base)}{own} "
            f"({', '.join(odd)[:200]}); train with the optimizer that wrote it"
        )
    if moments:
        _make_moments(engine, base, spec, step)
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            _set(engine, parameter, base, None, weights[name])
            for key in _keys(parameter, keys, spec) if moments else ():
                _set(engine, parameter, base, key, moments[f"{key}.{name}"])


def reset_state(
    engine: Any,
    weights: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
    *,
    step: int,
) -> None:
    """Return an engine that has taken steps to a gathered state. All ranks must call this.

    Args:
        engine: The engine. Its buffers are left as they are.
        weights: The weights from `gather_state`.
        moments: The moments from `gather_state`. If there are none, the optimizer starts anew.
        step: The optimizer steps of that state, which Adam's bias correction needs.

    Raises:
        ClusterError: the moments are another optimizer's.
    """
    base = base_optimizer(engine)
    if not moments:
        _make_moments(engine, base, spec_of(base), step)
    restore_state(engine, weights, moments, step=step)
    set_weights(engine, weights)


def set_weights(engine: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Give an engine other weights, in the optimizer and in the forward pass.

    Args:
        engine: The engine. Its buffers are left as they are.
        weights: Whole weights from `gather_state`.
    """
    base = base_optimizer(engine)
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            _set(engine, parameter, base, None, weights[name])
            _set_in_model(engine, parameter, weights[name])


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer of an engine."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


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


def _keys(
    parameter: torch.Tensor, keys: Mapping[torch.Tensor, tuple[str, ...]], spec: OptimizerSpec
) -> tuple[str, ...]:
    """Return the names of a parameter's moments. `keys` is from `_moments_by_tensor`."""
    return keys.get(parameter, spec.moments) if is_trained(parameter) else ()


def _moments_by_tensor(base: torch.optim.Optimizer) -> dict[torch.Tensor, tuple[str, ...]]:
    """The moments of the tensors whose parameter group names its own ones."""
    return {
        tensor: group["moments"]
        for group in base.param_groups
        if "moments" in group
        for tensor in group["params"]
    }


def _has_moments(engine: Any, base: torch.optim.Optimizer, spec: OptimizerSpec) -> bool:
    keys = _moments_by_tensor(base)
    return all(
        isinstance(base.state.get(flat, {}).get(key), torch.Tensor)
        for flat in flat_tensors(engine)
        for key in keys.get(flat, spec.moments)
    )


def _make_moments(engine: Any, base: torch.optim.Optimizer, spec: OptimizerSpec, step: int) -> None:
    """Give the optimizer a state of zeros, as if it had taken so many steps."""
    keys = _moments_by_tensor(base)
    for flat in flat_tensors(engine):
        own = keys.get(flat, spec.moments)
        base.state[flat] = {key: torch.zeros_like(flat) for key in own}
        if spec.counts_steps:
            base.state[flat]["step"] = torch.tensor(float(step))
    _link_moments(engine, base)


def _link_moments(engine: Any, base: torch.optim.Optimizer) -> None:
    """Let DeepSpeed's functions find the state of every parameter at stages 1 and 2."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if engine.zero_optimization_stage() in (1, 2):
        zero = engine.optimizer
        for group, flat in zip(zero.bit16_groups, flat_tensors(engine), strict=True):
            lazy_init_hp_params_optimizer_state(group, flat, base.state)


def _whole(
    engine: Any, parameter: Any, base: torch.optim.Optimizer, key: str | None
) -> torch.Tensor:
    """A parameter's weight, or one of its moments, whole: float32 on the CPU."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        whole = parameter if key is None else base.state[parameter][key]
    elif not is_trained(parameter):
        whole = _whole_of_model(engine, parameter)
    elif key is None:
        whole = safe_get_full_fp32_param(parameter)
    else:
        whole = safe_get_full_optimizer_state(parameter, key)
    return whole.detach().float().cpu().clone()


def _set(
    engine: Any,
    parameter: Any,
    base: torch.optim.Optimizer,
    key: str | None,
    whole: torch.Tensor,
) -> None:
    """Set a parameter's weight, or one of its moments, from the whole tensor."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    match engine.zero_optimization_stage():
        case _ if not is_trained(parameter):
            _set_in_model(engine, parameter, whole)
        case 0:
            (parameter if key is None else base.state[parameter][key]).copy_(whole)
        case 3 if key is None:
            safe_set_local_fp32_param(parameter, _own_slice(parameter, whole))
        case 3:
            safe_set_local_optimizer_state(parameter, _own_slice(parameter, whole), key)
        case _ if key is None:
            safe_set_full_fp32_param(parameter, whole)
        case _:
            safe_set_full_optimizer_state(parameter, whole, key)


def _whole_of_model(engine: Any, parameter: Any) -> torch.Tensor:
    """Return the weight that the forward pass uses, whole. A collective at stage 3."""
    if engine.zero_optimization_stage() < 3:
        return parameter
    part = parameter.ds_tensor
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part)
    return torch.cat(parts)[: parameter.ds_numel].reshape(parameter.ds_shape)


def _set_in_model(engine: Any, parameter: Any, whole: torch.Tensor) -> None:
    """Set the weight that the forward pass uses."""
    if engine.zero_optimization_stage() < 3:
        parameter.copy_(whole)
        return
    parameter.ds_tensor.copy_(_own_slice(parameter, whole))
    if parameter.numel():  # stage 3 keeps small parameters whole on every rank
        parameter.copy_(whole)


def _own_slice(parameter: Any, whole: torch.Tensor) -> torch.Tensor:
    """This rank's slice of a parameter at stage 3; the last ones are filled up with zeros."""
    size = parameter.ds_tensor.numel()
    part = whole.flatten()[size * dist.get_rank() : size * (dist.get_rank() + 1)]
    return torch.nn.functional.pad(part, (0, size - len(part)))
