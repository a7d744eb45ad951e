"""Which failures a training survives, which end it at once, and what the line says."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from cluster.errors import ClusterError
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.training import launch, losses
from pipeline.training.launch import run_training
from shards import ShardError


def died(text: str) -> ActorDiedError:
    context = ActorDiedErrorContext(
        error_message=text, pid=4711, class_name="RayTrainWorker", actor_id=b"0" * 16
    )
    return ActorDiedError(context)


DIED = died("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR")
NODE = died("The actor died because its node has died. Node Id: 1234")
KILLED = WorkerHealthCheckFailedError("A worker health check failed.", DIED)
LOST_NODE = WorkerHealthCheckFailedError("A worker health check failed.", NODE)
CUT_OFF = RuntimeError("[pair.cc:538] Connection closed by peer [127.0.0.1]:2034")
NO_MEMORY = OutOfMemoryError("Task was killed due to the node running low on memory")
READER = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
NO_ROOM = ControllerError(WorkerGroupStartupTimeoutError(2))


def workers(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("what Ray made of it", dict(enumerate(errors)))


@pytest.fixture
def launches(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Runs a training whose launches end as given; tells how many there were, and the notices."""
    monkeypatch.setattr(losses, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(losses, "missing_workers", lambda _: None)

    def run(*ends: Exception | None, allowed: int = 2, **settings: Any) -> tuple[int, str]:
        overrides = [f"cluster.{name}={value}" for name, value in settings.items()]
        config = make_config(tmp_path, f"cluster.max_failures={allowed}", *overrides)
        count = 0

        def fit(*_: Any) -> None:
            nonlocal count
            end = ends[min(count, len(ends) - 1)]
            count += 1
            run.count = count  # type: ignore[attr-defined]  # read where the launch raises
            if end is not None:
                raise end

        monkeypatch.setattr(launch, "fit_workers", fit)
        with (tmp_path / "told.txt").open("w+") as file:
            run_training(config, tmp_path, None, console=Console(file, file))
            file.seek(0)
            return count, file.read()

    return run


@pytest.mark.parametrize("error", [UserError("NaN"), ShardError("torn"), ClusterError("engine")])
def test_what_a_user_can_mend_is_never_tried_again(launches, error) -> None:
    with pytest.raises(type(error), match=str(error)):
        launches(workers(CUT_OFF, error), allowed=3)
    assert launches.count == 1


@pytest.mark.parametrize("error", [KILLED, CUT_OFF, LOST_NODE, OSError(errno.EIO, "an I/O error")])
def test_a_lost_worker_is_survived_with_a_line(launches, error) -> None:
    count, told = launches(workers(error), workers(error), None)
    assert count == 3
    assert "starting again from the last checkpoint (1 of cluster.max_failures=2)" in told
    assert "(2 of cluster.max_failures=2)" in told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KILLED, r"worker 0 \(process 4711\) was lost: killed by the system for want of memory"),
        (LOST_NODE, "the machine of worker 0 was lost; the same command goes on"),
        (NO_MEMORY, "worker 0 was killed by Ray, since its machine ran short of memory"),
        (READER, "a process that reads samples for worker 0 was killed or crashed"),
        (CUT_OFF, "worker 0 lost its connection to the others .*the same command goes on from the"),
    ],
)
def test_beyond_the_limit_a_line_says_what_was_lost_and_what_to_do(launches, error, told) -> None:
    with pytest.raises(ClusterError, match=f"{told}.*; it was started again 2 times"):
        launches(workers(error))
    assert launches.count == 3
    with pytest.raises(ClusterError, match=r"with cluster\.max_failures=3 it does so"):
        launches(workers(error), allowed=0)
    assert launches.count == 1


def test_a_worker_that_dies_while_it_starts_is_called_one(launches) -> None:
    with pytest.raises(ClusterError, match=r"^a worker \(process 4711\) was lost: killed"):
        launches(KILLED, allowed=0)


def test_the_first_cause_is_told_and_not_what_followed_from_it(launches) -> None:
    with pytest.raises(ClusterError, match=r"worker 1 .* was lost: killed"):
        launches(workers(CUT_OFF, KILLED), allowed=0)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: worker 0 cannot write"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: worker 0 .*Permission den"),
        (OSError(errno.EROFS, "Read-only file system", "/a"), "/a: worker 0 .*Read-only"),
        (MemoryError(), "worker 0 ran out of memory .*; lower training.batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "worker 0 ran out of me"),
        (RuntimeError("No CUDA GPUs are available"), "no GPU that torch can use .*use_gpu=false"),
        (RuntimeError("Distributed package doesn't have NCCL built in"), "no GPU that torch can"),
        (ValueError("ProcessGroupNCCL is only supported with GPUs, no GPUs found!"), "no GPU that"),
    ],
)
def test_what_would_fail_again_is_not_tried_again(launches, error, told) -> None:
    with pytest.raises(UserError, match=told):
        launches(workers(error), allowed=3)
    assert launches.count == 1


def test_a_defect_is_tried_again_and_comes_out_as_it_was(launches) -> None:
    with pytest.raises(WorkerGroupError):
        launches(workers(KeyError("oh")), allowed=1)
    assert launches.count == 2
    with pytest.raises(KeyError):  # in this process a failure may leave anything behind
        launches(KeyError("oh"), allowed=1, num_workers=0)
    assert launches.count == 1


def test_waiting_for_room_is_told_once_and_bounded(launches) -> None:
    count, told = launches(NO_ROOM, NO_ROOM, None, allowed=0)
    assert count == 3
    assert told.count("waiting for room (at most 600 s: cluster.wait_seconds)") == 1
    with pytest.raises(ClusterError, match=r"for 0 s \(cluster\.wait_seconds\); add machines"):
        launches(NO_ROOM, wait_seconds=0)
    count, told = launches(*[NO_ROOM] * 5, None, wait_seconds="null")
    assert (count, "waiting for room (for ever" in told) == (6, True)


def test_a_machine_that_does_not_come_back_ends_the_training(launches, monkeypatch) -> None:
    lacks = "needs 2 CPUs (2 workers x 1), but the cluster has 1"
    monkeypatch.setattr(losses, "missing_workers", lambda _: lacks)
    with pytest.raises(ClusterError) as caught:
        launches(workers(LOST_NODE), wait_seconds=0.2)
    assert str(caught.value) == (
        f"a machine was lost, and the training {lacks}, for 0.2 s (cluster.wait_seconds); add "
        "machines, or lower cluster.num_workers; the same command goes on from the last checkpoint"
    )
    assert launches.count == 1


def test_a_machine_that_comes_back_in_time_is_waited_for(launches, monkeypatch) -> None:
    lacking = iter(["needs 2 CPUs", "needs 2 CPUs", None])
    monkeypatch.setattr(losses, "missing_workers", lambda _: next(lacking))
    count, told = launches(workers(LOST_NODE), None)
    assert count == 2
    assert "a machine was lost, and the training needs 2 CPUs; waiting for room" in told
