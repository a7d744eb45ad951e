"""Processes of several ranks, forked from one that has imported DeepSpeed once for all of them."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., None], args: tuple[Any, ...], world_size: int) -> None:
    """Call `function(rank, *args)` in a process for each rank, and wait for all of them.

    Python keeps the process from which they are forked until the tests end.
    """
    mp.get_context("forkserver").set_forkserver_preload(["deepspeed"])
    mp.start_processes(function, args, nprocs=world_size, start_method="forkserver")


def join_ranks(rank: int, world_size: int, folder: str) -> None:
    """Let this process be a rank. All find each other in the folder, with one thread each."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    store = dist.FileStore(f"{folder}/store-{world_size}", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
