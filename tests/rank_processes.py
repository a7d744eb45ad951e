"""Processes of several ranks, forked from one that has imported DeepSpeed once for all of them."""

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.config.tree import Config
from pipeline.training import worker
from pipeline.training.ending import has_ended
from pipeline.training.rank_info import RankInfo
from pipeline.training.worker import TrainTask, open_training

PRELOADED = ["deepspeed", "torchmetrics", "pipeline.training.worker"]


def run_ranks(function: Callable[..., None], args: tuple[Any, ...], world_size: int) -> None:
    """Call `function(rank, *args)` in a process for each rank, and wait for all of them.

    Python keeps the process from which they are forked until the tests end. It has imported what
    all of them need.
    """
    mp.get_context("forkserver").set_forkserver_preload(PRELOADED)
    mp.start_processes(function, args, nprocs=world_size, start_method="forkserver")


def join_ranks(rank: int, world_size: int, folder: str) -> None:
    """Let this process be a rank. All find each other in the folder, with one thread each."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    store = dist.FileStore(f"{folder}/store-{world_size}", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)


def join_training(rank: int, world_size: int, folder: str) -> RankInfo:
    """Join as `join_ranks` does, and be the rank that trainings in this process find."""
    join_ranks(rank, world_size, folder)
    info = RankInfo(rank, rank, 0, world_size, torch.device("cpu"))
    worker.join = lambda: info  # which Ray Train tells a worker otherwise
    return info


def train_on_ranks(config: Config, world_size: int) -> None:
    """Train to the last epoch on several ranks, from the last checkpoint if there is one."""
    task = TrainTask(config.model_dump_json(), str(config.folder / "train"), None)
    with tempfile.TemporaryDirectory() as place:
        run_ranks(_train, (world_size, place, task), world_size)


def _train(rank: int, world_size: int, place: str, task: TrainTask) -> None:
    join_training(rank, world_size, place)
    with open_training(task) as (loop, state):
        while not has_ended(loop.config.training, state):
            state = loop.run_epoch(state)
    dist.barrier()
    dist.destroy_process_group()
