"""This process among all training processes."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class RankInfo:
    """This process among all ranks.

    Attributes:
        rank: The global rank.
        local_rank: The rank on its machine.
        node: The index of its machine.
        world_size: The number of ranks.
        device: The device that it trains on.
    """

    rank: int
    local_rank: int
    node: int
    world_size: int
    device: torch.device


def join() -> RankInfo:
    """Return this process's rank information. Without Ray Train it is the only rank."""
    import ray.train

    context = ray.train.get_context()
    rank, local_rank = context.get_world_rank(), context.get_local_rank()
    world_size = context.get_world_size()
    if not dist.is_initialized():  # cluster.num_workers=0
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    use_gpu = dist.get_backend() == "nccl"
    device = ray.train.torch.get_device() if use_gpu else torch.device("cpu")
    return RankInfo(rank, local_rank, context.get_node_rank(), world_size, device)
