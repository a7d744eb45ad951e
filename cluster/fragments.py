"""The parts of an engine's weights, buffers and optimizer state that this rank holds.

At stage 0 every rank holds all of them. At stages 1 and 2 DeepSpeed cuts the flat float32 tensor of
a parameter group among the ranks, and at stage 3 every parameter. In all cases a rank holds one
range of a flattened tensor at most, so a tensor of the checkpoint is put together from the ranges
of all ranks, at any world size and stage.

What DeepSpeed keeps on NVMe may be loaded and stored only inside `in_memory`. Fragments are in the
order in which each group of it is read once.

Frozen parameters (without `requires_grad`) have no moments. Up to stage 2, DeepSpeed keeps no
float32 copies of them, so the model's own are used.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from cluster.optimizers import OptimizerSpec, spec_of
from cluster.parameters_on_nvme import own_part, part_length
from cluster.swapped_state import SwappedState


@dataclass(frozen=True)
class Fragment:
    """A range of a flattened tensor that this rank holds.

    Attributes:
        name: The name of the tensor in a checkpoint.
        shape: The shape of the whole tensor.
        dtype: The type in a checkpoint. It is float32 for all weights and moments.
        start: The index of the first element of the range.
        length: The number of its elements.
        load: Returns the values, `[length]`, on the engine's device. They may be a view.
        store: Copies values into the engine, `[length]`, from any device.
        is_shared: Whether every rank holds the same whole tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    length: int
    load: Callable[[], torch.Tensor]
    store: Callable[[torch.Tensor], None]
    is_shared: bool = False

    @property
    def num_bytes(self) -> int:
        """The number of bytes of the range in a checkpoint."""
        return self.length * self.dtype.itemsize

    def narrow(self, start: int, length: int) -> "Fragment":
        """Return a part of the range, which can only be loaded. `start` counts from the range's."""

        def load() -> torch.Tensor:
            return self.load().narrow(0, start, length)

        return replace(self, start=self.start + start, length=length, load=load, store=_refuse)


def whole(name: str, tensor: torch.Tensor) -> Fragment:
    """Return a tensor that every rank holds whole."""
    flat = tensor.detach()
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return Fragment(
        name,
        tuple(tensor.shape),
        dtype,
        0,
        tensor.numel(),
        lambda: flat.reshape(-1),
        lambda values: _copy(flat, values),
        is_shared=True,
    )


def weight_fragments(engine: Any) -> list[Fragment]:
    """Return what this rank holds of the weights and persistent buffers, by the model's names."""
    return [*trained_fragments(engine), *_untrained_fragments(engine)]


def trained_fragments(engine: Any) -> list[Fragment]:
    """Return what this rank holds of the weights that the optimizer steps, in float32."""
    return [
        fragment
        for name, parameter in _by_group(engine)
        if parameter.requires_grad
        if (fragment := _held(engine, name, parameter, None)) is not None
    ]


def moment_fragments(engine: Any) -> list[Fragment]:
    """Return what this rank holds of the optimizer's moments, which must exist.

    Their names are `MOMENT.PARAMETER`, such as `exp_avg.head.bias`.
    """
    base = base_optimizer(engine)
    spec, keys = spec_of(base), moments_by_tensor(base)
    return [
        fragment
        for name, parameter in _by_group(engine)
        for key in moment_names(parameter, keys, spec)
        if (fragment := _held(engine, f"{key}.{name}", parameter, key)) is not None
    ]


def in_memory(engine: Any) -> AbstractContextManager[SwappedState | None]:
    """Return what brings the engine's state on NVMe into memory in its body, a group at a time.

    Without NVMe, all of the state is in memory.
    """
    return swapped if (swapped := swapped_state(engine)) else contextlib.nullcontext()


def swapped_state(engine: Any) -> SwappedState | None:
    """Return the engine's state on NVMe; None if it has none there."""
    return getattr(engine, "swapped_state", None)


def own_share(fragments: Iterable[Fragment], rank: int, world_size: int) -> list[Fragment]:
    """Return the fragments that this rank saves: those that it alone holds, and an equal share.

    Fragments that every rank holds are divided by bytes. All ranks must give them in one order.

    Args:
        fragments: All fragments that this rank holds of one kind.
        rank: The number of this rank.
        world_size: The number of ranks.
    """
    given = list(fragments)
    total = sum(fragment.num_bytes for fragment in given if fragment.is_shared)
    first, end = total * rank // world_size, total * (rank + 1) // world_size
    own, offset = [], 0
    for fragment in given:
        if not fragment.is_shared:
            own.append(fragment)
            continue

        def element(
            byte: int, offset: int = offset, size: int = fragment.dtype.itemsize,
            length: int = fragment.length,
        ) -> int:  # fmt: skip
            return min(max(-((offset - byte) // size), 0), length)

        start, stop = element(first), element(end)
        offset += fragment.num_bytes
        if stop > start or (not fragment.length and rank == 0):
            own.append(fragment.narrow(start, stop - start))
    return own


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer of an engine."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def moment_names(
    parameter: torch.Tensor, keys: Mapping[torch.Tensor, tuple[str, ...]], spec: OptimizerSpec
) -> tuple[str, ...]:
    """Return the names of a parameter's moments. `keys` is from `moments_by_tensor`."""
    return keys.get(parameter, spec.moments) if parameter.requires_grad else ()


def moments_by_tensor(base: torch.optim.Optimizer) -> dict[torch.Tensor, tuple[str, ...]]:
    """Return the moments of the tensors whose parameter group names its own ones."""
    return {
        tensor: group["moments"]
        for group in base.param_groups
        if "moments" in group
        for tensor in group["params"]
    }


def whole_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter, which stage 3 may have divided."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _by_group(engine: Any) -> list[tuple[str, Any]]:
    """Return all parameters by name, those of each group on NVMe one after the other."""
    named = list(engine.module.named_parameters())
    if (swapped := swapped_state(engine)) is None:
        return named

    def group(each: tuple[str, Any]) -> int:
        found = swapped.group_of(each[1])
        return -1 if found is None else found

    return sorted(named, key=group)


def _untrained_fragments(engine: Any) -> Iterable[Fragment]:
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            if engine.zero_optimization_stage() < 3:
                yield whole(name, parameter)
            elif (fragment := _held_at_stage_3(engine, name, parameter, None)) is not None:
                yield fragment
    persistent = engine.module.state_dict().keys()
    for name, buffer in engine.module.named_buffers():
        if name in persistent:
            yield whole(name, buffer)


def _held(engine: Any, name: str, parameter: Any, key: str | None) -> Fragment | None:
    """Return what this rank holds of a trained weight, or of one of its moments; None if nothing.

    Args:
        engine: The engine.
        name: The name in a checkpoint.
        parameter: The parameter.
        key: The name of the moment; None for the weight.
    """
    match engine.zero_optimization_stage():
        case 0:
            state = base_optimizer(engine).state
            return whole(name, parameter if key is None else state[parameter][key])
        case 3:
            return _held_at_stage_3(engine, name, parameter, key)
        case _:
            mapping = parameter._hp_mapping
            if mapping is None:
                return None
            view, address = mapping.get_hp_fragment(key), mapping.lp_fragment_address
            return Fragment(
                name,
                tuple(parameter.shape),
                torch.float32,
                address.start,
                address.numel,
                lambda: view.detach(),
                lambda values: _copy(view, values),
            )


def _held_at_stage_3(engine: Any, name: str, parameter: Any, key: str | None) -> Fragment | None:
    """Return this rank's part of a parameter at stage 3, without the padding of the last ones."""
    size = part_length(parameter)
    start = size * dist.get_rank()
    length = min(size, parameter.ds_numel - start)
    if length <= 0:
        return None
    shape = whole_shape(parameter)
    if not parameter.requires_grad:
        return Fragment(
            name, shape, torch.float32, start, length,
            lambda: _frozen_part(parameter, length),
            lambda values: _set_frozen_part(parameter, values),
        )  # fmt: skip
    swapped = swapped_state(engine)
    if swapped is not None and swapped.group_of(parameter) is not None:
        return Fragment(
            name, shape, torch.float32, start, length,
            lambda: swapped.read(parameter, key).narrow(0, 0, length).to(engine.device),
            lambda values: swapped.write(parameter, key, values),
        )  # fmt: skip
    return Fragment(
        name, shape, torch.float32, start, length,
        lambda: _local(parameter, key).narrow(0, 0, length),
        lambda values: _set_local(parameter, key, values, size),
    )  # fmt: skip


def _frozen_part(parameter: Any, length: int) -> torch.Tensor:
    with own_part(parameter) as part:
        return part.narrow(0, 0, length).clone()


def _set_frozen_part(parameter: Any, values: torch.Tensor) -> None:
    with own_part(parameter, changes=True) as part:
        _copy(part.narrow(0, 0, len(values)), values)


def _local(parameter: Any, key: str | None) -> torch.Tensor:
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if key is None:
        found = safe_get_local_fp32_param(parameter)
    else:
        found = safe_get_local_optimizer_state(parameter, key)
    return found.detach()


def _set_local(parameter: Any, key: str | None, values: torch.Tensor, size: int) -> None:
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    padded = torch.nn.functional.pad(values, (0, size - len(values)))
    with own_part(parameter):  # DeepSpeed compares its length
        if key is None:
            safe_set_local_fp32_param(parameter, padded)
        else:
            safe_set_local_optimizer_state(parameter, padded, key)


def _copy(target: torch.Tensor, values: torch.Tensor) -> None:
    with torch.no_grad():
        target.copy_(values.reshape(target.shape))


def _refuse(values: torch.Tensor) -> None:
    raise AssertionError(f"a share is saved and not restored ({len(values)} values)")
