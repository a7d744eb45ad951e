"""The Ray Data tasks that make shards: how the jobs are dealt out, and what is shown meanwhile."""

import math
from contextlib import suppress

import numpy as np
import pyarrow as pa

from cluster.errors import ClusterError
from cluster.placement import Place, capacity, missing_for, remote_options
from pipeline.preprocess.shard_task import ShardTask
from pipeline.runs.console import Console
from shards import ShardError
from shards.census import Census, ShardFacts

ONE_CPU = Place({"CPU": 1.0})
# Ray Data keeps a few bytes for each block. Larger sets get more shards in a block instead.
MAX_BLOCKS = 10_000
MAX_JOBS_EACH = 16
GUIDE = 1.5
"""A task takes `1 / (GUIDE * number of CPUs)` of the jobs that are left."""


def run_tasks(
    task: ShardTask,
    num_sources: int,
    console: Console,
    census: Census,
    addresses: list[str] | None = None,
    place: Place = ONE_CPU,
) -> None:
    """Run one Ray Data task for each block of jobs, and show the progress.

    Args:
        task: The function that makes the shards of a batch of jobs.
        num_sources: The number of sources to decode, for the progress bar.
        console: The console that shows the progress and notices.
        census: Counts the shards.
        addresses: The addresses of the new shards, from `shard_addresses`. They hold secrets, so
            they travel in memory with the jobs and are not written to disk.
        place: What each task reserves, and the machines on which it may run.

    Raises:
        ClusterError: No machine of the cluster can run a task.
        ShardError: A task failed with an error that a user can mend.
    """
    import ray

    if missing := missing_for(place, 1, "task"):
        raise ClusterError(
            f"preprocessing {missing}; change cluster.preprocess, or name another cluster in "
            "cluster.address"
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    _learn_limits_at_once()
    num_jobs = task.num_jobs
    # An operator that reads, such as `range`, would reserve CPUs for itself.
    blocks = np.split(np.arange(num_jobs), guided_self_scheduling(num_jobs, capacity(place)))
    table = {"id": np.arange(num_jobs)}
    if addresses is not None:
        table["addresses"] = np.array(addresses + [""] * (num_jobs - len(addresses)), object)
    jobs = ray.data.from_arrow(
        [pa.table({name: column[block] for name, column in table.items()}) for block in blocks]
    )
    # Ray Data takes one CPU a task, where nothing else is said.
    options = {} if place == ONE_CPU else remote_options(place)
    reported: set[str | None] = {None}
    with console.bar("preprocess", num_sources, "files") as bar:
        for row in jobs.map_batches(task, batch_size=1, **options).iter_rows():
            if row["error"] is not None:
                raise ShardError(row["error"])
            for line in row["shards"].splitlines():
                census.add(ShardFacts.from_json(line))
            if row["lacking"] not in reported:
                reported.add(row["lacking"])
                console.notice(f"the decoders' sandbox lacks protections on {row['lacking']}")
            bar.skip(row["kept"])
            bar.advance(row["files"])


def guided_self_scheduling(num_jobs: int, num_cpus: float) -> list[int]:
    """Return the offsets at which the jobs are cut into tasks.

    Tasks are few, since Ray Data leaves a CPU idle for 0.2 s after each. The last tasks are single
    jobs, so that all CPUs end together. The method is guided self-scheduling (Polychronopoulos and
    Kuck, IEEE Transactions on Computers C-36, 1987).
    """
    least = math.ceil(num_jobs / MAX_BLOCKS)
    most = max(MAX_JOBS_EACH, least)
    cuts: list[int] = []
    start = 0
    while start < num_jobs:
        share = math.ceil((num_jobs - start) / (GUIDE * max(num_cpus, 1)))
        start += min(max(share, least), most)
        cuts.append(start)
    return cuts[:-1]


def _learn_limits_at_once() -> None:
    """Let Ray Data ask more often how many CPUs the cluster has.

    Until it asks again, after a second, it takes the cluster for empty and runs one task at a time.
    The interval is internal to Ray: a version without it is left as it is.
    """
    with suppress(ImportError):
        from ray.data._internal.execution.resource_manager import ResourceManager

        ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = 0.1
