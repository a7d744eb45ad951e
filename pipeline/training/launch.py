"""Launch a training's workers with Ray Train, and relaunch them after a failure."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.interrupts import restore_signal_handlers
from cluster.ray_failures import Failure, read_failure, root_error
from cluster.ray_session import missing_resources
from pipeline.config.folders import Folder
from pipeline.config.tree import ClusterConfig, Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.outbox import RunRef
from pipeline.runs.user_errors import find_user_error
from pipeline.training.agreement import folder_token
from pipeline.training.worker import TrainTask, train_worker
from shards.redaction import shortened

POLL_SECONDS = 2.0
START_SECONDS = 60.0
GOES_ON = "the same command goes on from the last checkpoint"
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


def run_training(
    config: Config,
    folder: Folder,
    run: RunRef | None,
    *,
    callbacks: list[Any] | None = None,
    console: Console | None = None,
    init_folder: Folder | None = None,
    profile: int = 0,
) -> None:
    """Launch the workers with Ray Train and wait for them.

    After a lost worker or machine, the workers are relaunched from the last checkpoint, at most
    `cluster.max_failures` times. Errors that the user can fix are not retried.

    Args:
        config: The configuration.
        folder: The folder for checkpoints and progress, on storage that all workers share.
        run: The MLflow run.
        callbacks: Callbacks for Ray Train's RunConfig.
        console: It shows a line for each failure that is survived.
        init_folder: The folder with the copy of the weights of `model.init`; None means `folder`.
        profile: The number of steps that rank 0 profiles; 0 profiles none.

    Raises:
        UserError, ShardError, ClusterError: The training cannot continue. The message says why.
    """
    notify = console.notice if console else print
    # Within this process, a failure may leave any state behind, so it is not retried.
    allowed = config.cluster.max_failures if config.cluster.max_workers else 0
    failures = 0
    room = _Room(config, notify)
    with folder_token(folder) as token:
        task = TrainTask(
            config.model_dump_json(), str(folder), run, token, str(init_folder or folder), profile
        )
        while True:
            try:
                fit_workers(config.cluster, train_worker, task, folder, callbacks)
                return
            except SystemExit:  # Ray Train ends this way on Ctrl-C
                raise KeyboardInterrupt from None
            except Exception as error:
                if cause := find_user_error(error):
                    raise cause from error
                failure = read_failure(error)
                if failure and failure.kind == "no room":
                    room.wait_for_others()
                    continue
                if failure and failure.is_final:
                    raise UserError(f"{failure.text}; {GOES_ON}") from error
                if failures >= allowed:
                    if failure is None:
                        raise
                    raise ClusterError(_given_up(failure, failures)) from error
                failures += 1
                notify(
                    f"{failure.text if failure else _first_line(error)}; starting again from the "
                    f"last checkpoint ({failures} of cluster.max_failures={allowed})"
                )
                room.wait_for_machines()


def fit_workers(
    cluster: ClusterConfig,
    worker: Callable[[Any], None],
    task: Any,
    folder: Folder,
    callbacks: list[Any] | None = None,
) -> None:
    """Launch workers with Ray Train once, and wait for them. Ray Train itself does not retry.

    Args:
        cluster: The machines and processes. Without workers, this process does the work.
        worker: What every worker runs. It takes the task.
        task: The task.
        folder: A folder on storage that all workers share.
        callbacks: Callbacks for Ray Train's RunConfig.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    with _ray_storage(folder) as storage:
        trainer = TorchTrainer(
            worker,
            train_loop_config=task,
            scaling_config=ScalingConfig(
                num_workers=cluster.num_workers,
                use_gpu=cluster.use_gpu,
                resources_per_worker={"CPU": cluster.cpus_per_worker, "GPU": int(cluster.use_gpu)},
            ),
            run_config=RunConfig(
                # Each launch has a new name, because our own checkpoints do the resuming.
                name=f"{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns()}",
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                callbacks=callbacks or [],
            ),
        )
        with restore_signal_handlers(), _start_timeout(cluster.wait_seconds):
            trainer.fit()


@contextlib.contextmanager
def _ray_storage(folder: Folder) -> Iterator[Path]:
    """Make the folder that Ray Train asks for, and remove it afterwards.

    Nothing that has to last is kept there, so for a run in object storage it may be a local one.
    """
    if not isinstance(folder, Path):
        with tempfile.TemporaryDirectory(prefix="perceiver-train-") as temporary:
            yield Path(temporary)
        return
    storage = folder / "ray"
    try:
        yield storage
    finally:
        shutil.rmtree(storage, ignore_errors=True)


@contextlib.contextmanager
def _start_timeout(wait_seconds: float | None) -> Iterator[None]:
    """Set the time after which Ray Train reports that the cluster has no room."""
    unset = _START_TIMEOUT not in os.environ
    seconds = START_SECONDS if wait_seconds is None else min(START_SECONDS, max(1.0, wait_seconds))
    os.environ.setdefault(_START_TIMEOUT, str(seconds))
    try:
        yield
    finally:
        if unset:
            os.environ.pop(_START_TIMEOUT, None)


class _Room:
    """Wait for room on the cluster, for at most `cluster.wait_seconds`.

    Args:
        config: The configuration.
        notify: A function that takes a line when the wait begins.
    """

    def __init__(self, config: Config, notify: Callable[[str], None]) -> None:
        self._cluster, self._notify = config.cluster, notify
        self._since = time.monotonic()
        self._notified = False

    def wait_for_machines(self) -> None:
        """Return when the cluster's machines together have what the workers need.

        Raises:
            ClusterError: They did not have it within `cluster.wait_seconds`.
        """
        self._since, self._notified = time.monotonic(), False
        while missing := self._missing():
            self._check(f"a machine was lost, and the training {missing}")
            time.sleep(POLL_SECONDS)
        self._since = time.monotonic()

    def wait_for_others(self) -> None:
        """Record that Ray Train found no room for the workers; called each time.

        Raises:
            ClusterError: This has lasted for `cluster.wait_seconds`.
        """
        missing = self._missing() or "finds no room, since others use the cluster"
        self._check(f"the training {missing}")

    def _missing(self) -> str | None:
        return missing_resources(
            num_workers=self._cluster.num_workers,
            cpus_per_worker=self._cluster.cpus_per_worker,
            use_gpu=self._cluster.use_gpu,
        )

    def _check(self, what: str) -> None:
        limit = self._cluster.wait_seconds
        if limit is not None and time.monotonic() - self._since >= limit:
            raise ClusterError(
                f"{what}, for {limit:g} s (cluster.wait_seconds); add machines, or lower "
                f"cluster.num_workers; {GOES_ON}"
            )
        if not self._notified:
            bound = "for ever" if limit is None else f"at most {limit:g} s"
            self._notify(f"{what}; waiting for room ({bound}: cluster.wait_seconds)")
            self._notified = True


def _given_up(failure: Failure, failures: int) -> str:
    if failures:
        hint = f"it was started again {failures} times (cluster.max_failures)"
    else:
        hint = "with cluster.max_failures=3 it does so by itself"
    return f"{failure.text}; {GOES_ON}; {hint}"


def _first_line(error: Exception) -> str:
    root = root_error(error)
    return f"a worker failed ({type(root).__name__}: {shortened(str(root), 160)})"
