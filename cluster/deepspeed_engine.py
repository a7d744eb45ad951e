"""Create DeepSpeed's engines, and check that they follow what was asked for."""

from collections.abc import Sequence
from typing import Any

import torch

from cluster.errors import ClusterError
from cluster.flat_gradients import use_flat_gradients
from cluster.loss_scale import drop_scalers
from cluster.nvme import require_nvme
from cluster.optimizers import spec_of
from cluster.parameters_on_nvme import largest_part, move_to_nvme
from cluster.partition_norm import sum_norms_in_place
from cluster.strategy import Strategy, check_strategy
from cluster.swapped_state import SwappedState
from cluster.tensor_slices import slices_of, tensor_length, whole_squared_norms

TORCH_LINEAR = torch.nn.functional.linear


def initialize_engine(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    strategy: Strategy,
    gathered_whole: Sequence[type[torch.nn.Module]] = (),
) -> Any:
    """Create a DeepSpeed engine around `model` and check it against the requested strategy.

    torch.distributed must be initialized.

    Args:
        model: The model.
        optimizer: The optimizer of the model's parameters.
        strategy: The requested strategy.
        gathered_whole: Classes whose forward uses weights of their submodules without calling
            them. Stage 3 gathers all weights of such a module before its forward and backward.

    Raises:
        ClusterError: The engine does not follow `strategy`, ZeRO cannot step the optimizer, NVMe
            cannot be used here, or this DeepSpeed lays out the slices of tensors in an unknown way.
    """
    import deepspeed

    num_parameters = sum(map(tensor_length, model.parameters()))
    largest = largest_part(model, strategy.world_size)
    require_nvme(strategy, num_parameters, largest)
    reads = spec_of(optimizer).reads
    if strategy.zero_stage and reads == "tensors":
        raise ClusterError(
            f"training.zero_stage is {strategy.zero_stage}, whose slices {strategy.optimizer} "
            "cannot step; set it to 0"
        )
    sliced: Any = optimizer if strategy.zero_stage and reads == "norms" else None
    squares = whole_squared_norms(sliced.tensors) if sliced else None

    prepare_deepspeed()
    settings = strategy.to_deepspeed(num_parameters, largest)
    if strategy.offload_parameters == "nvme":
        move_to_nvme(model, strategy, settings)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    drop_scalers(engine)
    check_strategy(engine, strategy)
    use_flat_gradients(engine, strategy, num_parameters)
    sum_norms_in_place(engine)
    engine.swapped_state = SwappedState(engine) if strategy.offload_optimizer == "nvme" else None
    if squares is not None:
        sliced.use_slices(slices_of(engine, sliced.tensors, squares))
    if strategy.zero_stage == 3:
        for module in model.modules():
            if isinstance(module, tuple(gathered_whole)):
                for parameter in module.parameters():
                    deepspeed.zero.register_external_parameter(module, parameter)
    return engine


def prepare_deepspeed() -> None:
    """Let DeepSpeed use the process group of torch.distributed, which must be initialized."""
    import deepspeed

    # Otherwise every CPU worker compiles a shared-memory kernel before the first step.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())


def leave_process_group(*engines: Any) -> None:
    """End torch.distributed and DeepSpeed's copy of it, so that this process can start again.

    Args:
        engines: The engines that end with it. Hooks would keep those of ZeRO in memory, each with a
            thread of the group that wakes a hundred times a second.
    """
    import deepspeed.comm
    from deepspeed.runtime import torch_autocast

    for engine in engines:
        engine.destroy()
    deepspeed.comm.destroy_process_group()
    # An engine that autocasts sets these for all later engines of the process.
    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    torch_autocast.TORCH_AUTOCAST_DTYPE = None
    # Stage 3 replaces this function and does not restore it. Its version rounds differently.
    torch.nn.functional.linear = TORCH_LINEAR
