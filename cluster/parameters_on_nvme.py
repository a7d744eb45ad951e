"""The weights that ZeRO stage 3 keeps in files (NVMe) between their uses.

A model is built and filled in the machine's memory, and then moved: DeepSpeed itself would move
each module while the model is built, before weights are loaded into it.

Each rank has a file for its part of each weight. A part with less than 1 MiB stays in memory. A
part is read into one of several buffers before its module runs, gathered, and released after it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from cluster.strategy import Strategy


def largest_part(model: torch.nn.Module, world_size: int) -> int:
    """Return the number of elements of a rank's largest part of a weight, with its padding."""
    lengths = (getattr(each, "ds_numel", each.numel()) for each in model.parameters())
    return -(-max(lengths, default=1) // world_size)


def move_to_nvme(model: torch.nn.Module, strategy: Strategy, settings: dict[str, Any]) -> None:
    """Move this rank's parts of a model's weights to files.

    A model that is not divided yet is divided first. All ranks must call this (a collective).

    Args:
        model: The model.
        strategy: The strategy of the engine that will train it.
        settings: The configuration of that engine, from `Strategy.to_deepspeed`.
    """
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.swap_tensor.partitioned_param_swapper import (
        AsyncPartitionedParameterSwapper,
    )
    from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum

    whole = sum(each.numel() for each in model.parameters() if not hasattr(each, "ds_tensor"))
    deepspeed.zero.Init(
        module=model, config_dict_or_path=strategy.while_built().to_deepspeed(max(1, whole))
    )
    swapper = AsyncPartitionedParameterSwapper(DeepSpeedConfig(settings), torch.float32)
    for parameter in model.parameters():
        own: Any = parameter
        own.nvme_swapper = swapper
        length = own.ds_tensor.ds_numel
        if not swapper.swappable_tensor(numel=length):
            continue
        buffer = swapper.get_buffer(own, length)
        buffer.copy_(own.ds_tensor)
        own.ds_tensor.data = buffer.data
        own.ds_tensor.final_location = OffloadDeviceEnum.nvme
        swapper.swap_out_and_release([own])


@contextlib.contextmanager
def own_part(parameter: Any, *, changes: bool = False) -> Iterator[torch.Tensor]:
    """Yield this rank's part of a weight that stage 3 has divided, wherever it is kept.

    Args:
        parameter: The parameter.
        changes: Whether the part is changed, and must be written back.

    Yields:
        The part, `[length]`, with its padding. It is valid inside `with`.
    """
    part = parameter.ds_tensor
    if part.final_location != "nvme":
        yield part.detach()
        return
    swapper = parameter.nvme_swapper
    if part.status.name == "NOT_AVAILABLE":
        swapper.swap_in([parameter], async_op=False)
    try:
        yield part.detach()
    finally:
        if changes:
            swapper.swap_out_and_release([parameter])
        else:
            swapper.remove_partition_and_release_buffers([parameter])


def part_length(parameter: Any) -> int:
    """Return the number of elements of this rank's part of a divided weight, with its padding."""
    return int(parameter.ds_tensor.ds_numel)
