"""How the shards to be made are dealt out as Ray Data's tasks."""

import numpy as np
import pytest
from ray.data._internal.execution.resource_manager import ResourceManager

from pipeline.preprocess.ray_tasks import MAX_BLOCKS, MAX_JOBS_EACH, guided_self_scheduling


@pytest.mark.parametrize("num_cpus", [0, 1, 2, 64, 5000])
@pytest.mark.parametrize("num_jobs", [1, 2, 16, 1000, 25_000, 1_000_000])
def test_every_job_is_in_one_task_and_tasks_do_not_grow(num_jobs: int, num_cpus: int) -> None:
    tasks = np.split(np.arange(num_jobs), guided_self_scheduling(num_jobs, num_cpus))
    assert np.concatenate(tasks).tolist() == list(range(num_jobs))
    sizes = [len(task) for task in tasks]
    assert sizes == sorted(sizes, reverse=True)
    assert len(tasks) <= MAX_BLOCKS
    assert 1 <= sizes[-1] <= sizes[0] <= max(MAX_JOBS_EACH, -(-num_jobs // MAX_BLOCKS))


def test_the_last_tasks_are_single_shards() -> None:
    sizes = [len(task) for task in np.split(np.arange(1000), guided_self_scheduling(1000, 8))]
    assert sizes[:3] == [MAX_JOBS_EACH] * 3
    assert sizes[-8:] == [1] * 8


def test_this_ray_asks_for_its_limits_where_we_think() -> None:
    assert hasattr(ResourceManager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S")
