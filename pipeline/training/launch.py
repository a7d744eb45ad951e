"""Launch a training's workers with Ray Train, and relaunch them after a failure."""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.interrupts import Terminated, restore_signal_handlers
from cluster.notices import Notice, clear, forget, keep, signals_as_notices, tell_workers
from cluster.ray_failures import Failure, read_failure, root_error
from pipeline.config.cluster import ClusterConfig, WorkerRange
from pipeline.config.folders import Folder
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.outbox import RunRef
from pipeline.runs.user_errors import find_user_error
from pipeline.training.agreement import folder_token
from pipeline.training.losses import GOES_ON, Losses, Room
from pipeline.training.placing import worker_placement
from pipeline.training.worker import TrainTask, train_worker
from shards.redaction import shortened

START_SECONDS = 60.0
NO_CHECKPOINT = "without a checkpoint of that step (training.on_bad_step: rollback)"
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
    study_token: str = "",
    until: int = 0,
    notify: Callable[[str], None] | None = None,
) -> None:
    """Launch the workers with Ray Train and wait for them.

    After a lost worker or machine, the workers are relaunched from the last checkpoint, at most
    `cluster.max_failures` times. Errors that the user can fix are not retried. After a notice to
    stop (`cluster.notices`), the workers save a checkpoint first. A notice to a worker relaunches
    them if losses may.

    Args:
        config: The configuration.
        folder: The folder for checkpoints and progress, on storage that all workers share.
        run: The MLflow run.
        callbacks: Callbacks for Ray Train's RunConfig.
        console: It shows a line for each failure that is survived.
        init_folder: The folder with the copy of the weights of `model.init`; None means `folder`.
        profile: The number of steps that rank 0 profiles; 0 profiles none.
        study_token: The token of the study that this training is a trial of; empty for none.
        until: The number of epochs after which it pauses; 0 trains to the end.
        notify: A function that takes these lines if there is no console; None prints them.

    Raises:
        UserError, ShardError, ClusterError: The training cannot continue. The message says why.
        Terminated: The training was told to stop. It has saved a checkpoint, if
            `training.on_bad_step` is not `rollback`.
    """
    notify = console.notice if console else notify or print
    losses = Losses(config.cluster, folder)
    room = Room(config.cluster, notify)
    with folder_token(folder) as token:
        command = _Command(config.cluster, token, notify)
        task = TrainTask(
            config.model_dump_json(),
            str(folder),
            run,
            token,
            str(init_folder or folder),
            profile,
            study_token,
            until,
        )
        while True:
            try:
                with command.signals():
                    stopped = fit_workers(
                        config.cluster, train_worker, task, folder, callbacks, token
                    )
                if stopped is None:
                    return
                text = _told_to_stop(stopped)
                if stopped["notice"] == Notice.COMMAND or not losses.may_go_on:
                    raise Terminated(command.signal or signal.SIGTERM, f"{text}; {GOES_ON}")
                notify(f"{text}; starting again from the last checkpoint")
                room.wait_for_machines()
            except SystemExit:  # Ray Train ends this way on Ctrl-C
                raise KeyboardInterrupt from None
            except Exception as error:
                if cause := find_user_error(error):
                    raise cause from error
                failure = read_failure(error)
                if command.signal is not None:
                    raise Terminated(command.signal, GOES_ON) from error
                if failure and failure.kind == "no room":
                    room.wait_for_others()
                    continue
                if failure and failure.is_final:
                    raise UserError(f"{failure.text}; {GOES_ON}") from error
                if not losses.survives_another():
                    if failure is None:
                        raise
                    raise ClusterError(_given_up(failure, losses)) from error
                notify(
                    f"{failure.text if failure else _first_line(error)}; starting again from the "
                    f"last checkpoint ({losses.count} of {losses.limit})"
                )
                room.wait_for_machines()


def fit_workers(
    cluster: ClusterConfig,
    worker: Callable[[Any], Any],
    task: Any,
    folder: Folder,
    callbacks: list[Any] | None = None,
    token: str = "",
) -> Any:
    """Launch workers with Ray Train once, and wait for them. Ray Train itself does not retry.

    With a range of workers, Ray Train takes as many as there is room for, and resizes them.

    Args:
        cluster: The machines and processes. Without workers, this process does the work.
        worker: What every worker runs. It takes the task.
        task: The task.
        folder: A folder on storage that all workers share.
        callbacks: Callbacks for Ray Train's RunConfig.
        token: The token under which the workers listen for notices; empty if they do not.

    Returns:
        What the worker of rank 0 returns.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    placement = worker_placement(cluster)
    workers: Any = cluster.num_workers
    elastic = {}
    if isinstance(workers, WorkerRange):
        elastic = {"elastic_resize_monitor_interval_s": workers.resize_seconds}
        workers = (workers.min, workers.max)
    with ray_storage(folder) as storage:
        trainer = TorchTrainer(
            worker,
            train_loop_config=task,
            torch_config=TorchConfig(timeout_s=cluster.timeout_seconds),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=cluster.use_gpu,
                resources_per_worker=dict(placement.place.resources),
                placement_strategy=placement.strategy.upper(),
                label_selector=placement.selectors() if cluster.min_workers else None,
                **elastic,
            ),
            run_config=RunConfig(
                # Each launch has a new name, because our own checkpoints do the resuming.
                name=f"{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns()}",
                storage_path=str(storage),
                worker_runtime_env={"env_vars": dict(cluster.environment)}
                if cluster.environment
                else None,
                failure_config=FailureConfig(
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
                callbacks=[*(callbacks or []), *_own_callbacks(cluster, token)],
            ),
        )
        with restore_signal_handlers(), _start_timeout(cluster.wait_seconds):
            return trainer.fit().return_value


@contextlib.contextmanager
def ray_storage(folder: Folder) -> Iterator[Path]:
    """Make the folder that Ray Train and Ray Tune ask for, and remove it afterwards.

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


def _own_callbacks(cluster: ClusterConfig, token: str) -> list[Any]:
    if not token or not cluster.min_workers:
        return []
    from cluster.ray_callbacks import Resizing, WorkerNotices

    clear(token)  # an earlier launch may have left some
    seconds = _start_seconds(cluster.wait_seconds)
    resizing = [Resizing(token, cluster.min_workers, seconds)] if cluster.is_elastic else []
    return [WorkerNotices(), *resizing]


def _start_seconds(wait_seconds: float | None) -> float:
    return START_SECONDS if wait_seconds is None else min(START_SECONDS, max(1.0, wait_seconds))


@contextlib.contextmanager
def _start_timeout(wait_seconds: float | None) -> Iterator[None]:
    """Set the time after which Ray Train reports that the cluster has no room."""
    unset = _START_TIMEOUT not in os.environ
    seconds = _start_seconds(wait_seconds)
    os.environ.setdefault(_START_TIMEOUT, str(seconds))
    try:
        yield
    finally:
        if unset:
            os.environ.pop(_START_TIMEOUT, None)


class _Command:
    """The command that runs the training: its first SIGTERM or SIGHUP stops the workers.

    Args:
        cluster: The machines and processes.
        token: The token under which the workers listen.
        notify: A function that takes a line when the signal comes.

    Attributes:
        signal: The number of the signal that came, or None.
    """

    def __init__(self, cluster: ClusterConfig, token: str, notify: Callable[[str], None]) -> None:
        self._cluster, self._token, self._notify = cluster, token, notify
        self.signal: int | None = None

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Stop the workers of one launch at the first signal, with a checkpoint."""
        forget()
        with signals_as_notices(self._tell):
            yield

    def _tell(self, number: int) -> None:
        self.signal = number
        self._notify(
            f"{signal.Signals(number).name}: the training saves a checkpoint after its step and "
            "stops; a second one stops it at once"
        )
        if self._cluster.min_workers:
            tell_workers(self._token, Notice.COMMAND)
        else:
            keep(Notice.COMMAND)


def _told_to_stop(stopped: dict[str, int]) -> str:
    """Describe in words what `train_worker` returns."""
    why = {
        Notice.DRAIN: "a machine of the training is about to be taken away; ",
        Notice.WORKER_SIGNAL: f"worker {stopped['rank']} got SIGTERM; ",
    }.get(Notice(stopped["notice"]), "")
    saved = "with a checkpoint" if stopped["is_saved"] else NO_CHECKPOINT
    return f"{why}stopped after step {stopped['step']}, {saved}"


def _given_up(failure: Failure, losses: Losses) -> str:
    if losses.count:
        hint = f"it was started again {losses.count} times ({losses.field})"
    else:
        hint = "with cluster.max_failures=3 it does so by itself"
    return f"{failure.text}; {GOES_ON}; {hint}"


def _first_line(error: Exception) -> str:
    root = root_error(error)
    return f"a worker failed ({type(root).__name__}: {shortened(str(root), 160)})"
