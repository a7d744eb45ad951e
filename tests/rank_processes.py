"""Processes of several ranks, forked from one that has imported DeepSpeed once for all of them."""

from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def run_ranks(function: Callable[..., None], args: tuple[Any, ...], world_size: int) -> None:
    """Call `function(rank, *args)` in a process for each rank, and wait for all of them.

    Python keeps the process from which they are forked until the tests end.
    """
    mp.get_context("forkserver").set_forkserver_preload(["deepspeed"])
    mp.start_processes(function, args, nprocs=world_size, start_method="forkserver")
