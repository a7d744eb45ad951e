"""The trials of a study: their settings, their training, and their results."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.interrupts import Terminated
from cluster.notices import is_told
from pipeline.config.conditions import Settings
from pipeline.config.folders import Folder, folder_at
from pipeline.config.study import SEED
from pipeline.config.tree import Config
from pipeline.config.trial_configs import trial_config
from pipeline.errors import UserError
from pipeline.runs.mlflow_client import new_client
from pipeline.runs.outbox import RunRef
from pipeline.runs.records import write_json
from pipeline.runs.storage import exists, make_folder, names, read_bytes
from pipeline.runs.tracking import begin_run, child_run, end_run, log_to_run
from pipeline.runs.user_errors import find_user_error
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.ending import has_ended
from pipeline.training.initial_weights.report import log_init
from pipeline.training.initial_weights.start import saved_init
from pipeline.training.launch import run_training
from pipeline.training.losses import GOES_ON
from pipeline.training.result import STOPPED_TAG
from pipeline.tuning.journal import StudyJournal
from shards import ShardError, ShardSet

TRIALS, TRIAL_FILE = "trials", "trial.json"
NUMBER_TAG, SETTINGS_TAG, SEED_TAG = "perceiver.trial", "perceiver.settings", "perceiver.seed"
RETRY_SECONDS = 5.0
_MAX_NOTE_BYTES = 1 << 20


def trial_folder(folder: Folder, number: int) -> Folder:
    """Return the folder of one trial within the study's folder."""
    return folder / TRIALS / f"{number:05d}"


@dataclass(frozen=True)
class Task:
    """One launch of a trial.

    Attributes:
        number: The number of the trial.
        draw: The number of its settings.
        seed: The seed of the training.
        settings: The settings.
        reported: The number of epochs that the trial had reported.
        until: The number of epochs after which it waits for others; 0 trains to the end.
    """

    number: int
    draw: int
    seed: int
    settings: Settings
    reported: int
    until: int = 0

    def as_json(self) -> str:
        """Return the task as JSON, which `Task(**json.loads(text))` reads."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Trial:
    """The function that Ray Tune calls for each trial.

    It runs in its own process and launches the workers.

    Attributes:
        base: The configuration that every trial starts from, as JSON.
        folder: The folder of the study.
        parent: The MLflow run of the study.
        source: Tags that record who started the study, and with which code.
        token: The token under which the workers listen for notices to the study.
    """

    base: str
    folder: str
    parent: RunRef
    source: dict[str, str]
    token: str

    def __call__(self, task: Task) -> None:
        """Train the trial, and report its epochs to Ray Tune.

        The last report has `stopped` if a notice has stopped the trial, and `failed` with the error
        if it must not be tried again. Ray Tune starts a trial again whose process was lost.
        """
        from ray import tune as ray_tune

        if is_told(self.token):
            ray_tune.report({"stopped": ""})
            return
        try:
            self._train(task)
        except Terminated as stopped:
            # The trial itself does not know that the study's command goes on with it.
            ray_tune.report({"stopped": stopped.done.removesuffix(f"; {GOES_ON}")})
        except Exception as error:
            cause = find_user_error(error)
            if cause is None:
                raise
            ray_tune.report({"failed": str(cause)})

    def _train(self, task: Task) -> None:
        from ray import tune as ray_tune
        from ray.tune.integration.ray_train import TuneReportCallback

        base = Config.model_validate_json(self.base)
        config = trial_config(base, {SEED: task.seed, **task.settings})
        study_folder = folder_at(self.folder)
        folder = trial_folder(study_folder, task.number)
        make_folder(folder)
        # The process is killed when the trial is stopped, so the driver ends the run.
        shard_set = ShardSet.open(config.shards_folder, config.data.remote_reading)
        run = _patiently(
            lambda: begin_run(
                config,
                kind="trial",
                shard_set=shard_set,
                run_id=self._earlier_run(folder, task.number),
                parent_run_id=self.parent.run_id,
                tags={
                    **self.source,
                    NUMBER_TAG: str(task.number),
                    SETTINGS_TAG: str(task.draw),
                    SEED_TAG: str(task.seed),
                },
            ),
            config.cluster.wait_seconds,
        )
        write_json(folder / TRIAL_FILE, {"params": task.settings, "run_id": run.run_id})
        if (init := saved_init(config, study_folder)) is not None:
            log_init(run, folder, init, init.plan(config, shard_set))
        last = last_checkpoint(folder / "checkpoints")
        if last is not None:
            # A kill can come between a checkpoint and its report. Then the checkpoint has epochs
            # that were not reported.
            for epoch, score in enumerate(last.state.scores, start=1):
                if epoch > task.reported:
                    # JSON stores scores that are not finite as null.
                    ray_tune.report({"epoch": epoch, "score": math.nan if score is None else score})
            if has_ended(config.training, last.state) or 0 < task.until <= last.state.epoch:
                return
        run_training(
            config,
            folder,
            run,
            callbacks=[TuneReportCallback()],
            init_folder=study_folder,
            study_token=self.token,
            until=task.until,
            notify=lambda text: ray_tune.report({"note": text}),
        )

    def _earlier_run(self, folder: Folder, number: int) -> str | None:
        """Return the run that this trial had before the study was interrupted, or None."""
        noted = folder / TRIAL_FILE
        if exists(noted):
            return str(read_note(noted)["run_id"])
        # A kill can come after the run was created and before it was recorded.
        return child_run(self.parent, {NUMBER_TAG: str(number)})


def _patiently(begin: Callable[[], RunRef], seconds: float | None) -> RunRef:
    """Begin a run. If MLflow does not answer, wait for it, because each trial needs its own run.

    Args:
        begin: The function that begins the run.
        seconds: How long to wait; None waits forever.

    Raises:
        UserError: MLflow did not answer in time.
    """
    started = time.monotonic()
    while True:
        try:
            return begin()
        except UserError:
            if seconds is not None and time.monotonic() - started > seconds:
                raise
        time.sleep(RETRY_SECONDS)


def end_trial(
    folder: Folder, parent: RunRef, number: int, status: str, journal: StudyJournal, epochs: int
) -> None:
    """Set the status of a trial's run when the trial has ended.

    A trial that was stopped is FINISHED, and a tag gives the epoch after which it was stopped.

    Args:
        folder: The folder of the study.
        parent: The MLflow run of the study.
        number: The number of the trial.
        status: The MLflow status: `FINISHED`, `FAILED` or `KILLED`.
        journal: The journal of the study.
        epochs: The number of epochs of the trial if it is not stopped.
    """
    noted = trial_folder(folder, number) / TRIAL_FILE
    if not exists(noted):
        return  # it failed before it had a run
    run = replace(parent, run_id=read_note(noted)["run_id"])
    stopped = stopped_at(journal, number, epochs)
    if stopped is not None:
        log_to_run(run, tags={STOPPED_TAG: str(stopped)})
    end_run(run, status)


def close_trials(
    folder: Folder,
    parent: RunRef,
    journal: StudyJournal,
    epochs: Callable[[int], int],
    ended: dict[int, bool],
) -> None:
    """End the runs of trials that are still open, with the status of the trial.

    Args:
        folder: The folder of the study.
        parent: The MLflow run of the study.
        journal: The journal of the study.
        epochs: A function that returns the number of epochs of a trial that is not stopped.
        ended: Whether each ended trial ended without an error, by number. Trials that are not in it
            were cut off with the study.
    """
    mlflow_client = new_client(parent.tracking_uri)
    for name in filter(str.isdigit, names(folder / TRIALS)):
        number = int(name)
        noted = trial_folder(folder, number) / TRIAL_FILE
        if not exists(noted):
            continue
        found = _status(mlflow_client, read_note(noted)["run_id"])
        if number in ended:
            status = "FINISHED" if ended[number] else "FAILED"
        else:
            status = "KILLED" if found in ("RUNNING", None) else found
        if found != status:
            end_trial(folder, parent, number, status, journal, epochs(number))


def _status(mlflow_client: Any, run_id: str) -> str | None:
    """Return the status of a run; None if MLflow does not answer."""
    try:
        return str(mlflow_client.get_run(run_id).info.status)
    except Exception:  # stores raise many kinds of exceptions
        return None


def stopped_at(journal: StudyJournal, number: int, epochs: int) -> int | None:
    """Return the epoch after which the trial was stopped; None if it reached its end."""
    stopped = journal.is_stopped(number) and journal.epochs(number) < epochs
    return journal.epochs(number) if stopped else None


def read_note(path: Folder) -> dict[str, Any]:
    """Return what a trial recorded when it began: `params` and `run_id`.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        note = json.loads(read_bytes(path, _MAX_NOTE_BYTES))
        return {"params": dict(note["params"]), "run_id": str(note["run_id"])}
    except (
        OSError, ShardError, ValueError, TypeError, KeyError, RecursionError,
    ) as error:  # fmt: skip
        raise UserError(
            f"{path}: missing or damaged ({error}); run the study again with --fresh"
        ) from None
