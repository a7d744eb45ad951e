"""The trials of a study: their settings, their training, and their results."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cluster.interrupts import Terminated
from cluster.notices import is_told
from pipeline.config.folders import Folder, folder_at
from pipeline.config.load import with_values
from pipeline.config.search import SEARCHES, Settings
from pipeline.config.study import StudyConfig
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.mlflow_client import new_client
from pipeline.runs.outbox import RunRef
from pipeline.runs.records import write_json
from pipeline.runs.storage import exists, make_folder, names, read_bytes
from pipeline.runs.tracking import begin_run, child_run, end_run, log_to_run, run_ref
from pipeline.runs.user_errors import find_user_error
from pipeline.training.checkpoints import best_checkpoint, last_checkpoint
from pipeline.training.ending import has_ended
from pipeline.training.initial_weights.report import log_init
from pipeline.training.initial_weights.start import saved_init
from pipeline.training.launch import run_training
from pipeline.training.losses import GOES_ON
from pipeline.training.objectives import objective_of
from pipeline.training.result import STOPPED_TAG, log_best, training_result
from pipeline.tuning.journal import StudyJournal
from shards import ShardError, ShardSet

TRIALS, TRIAL_FILE = "trials", "trial.json"
NUMBER_TAG = "perceiver.trial"
RETRY_SECONDS = 5.0
_MAX_NOTE_BYTES = 1 << 20


def study_base(config: Config, study: StudyConfig) -> Config:
    """Return the configuration of every trial, with the study's workers and epochs."""
    values: dict[str, Any] = {"cluster.num_workers": study.num_workers}
    if study.epochs is not None:
        values["training.epochs"] = study.epochs
    return with_values(config, values)


def trial_config(base: Config, settings: Settings) -> Config:
    """Return the configuration of a trial.

    The search space was checked with the base. It is not checked again, since another value of it
    may not go with the trial's own ones.

    Raises:
        UserError: The values do not go together.
    """
    trial = with_values(base, {**settings, "study": None})
    return trial.model_copy(update={"study": base.study})


def draw_settings(study: StudyConfig, seed: int) -> list[Settings]:
    """Return the settings of every trial, by number.

    The first ones stay the same if `num_trials` grows.

    Args:
        study: The section `study` of the configuration.
        seed: The seed of the search.
    """
    return SEARCHES[study.search].settings(study.space, study.trials, seed)


def trial_folder(folder: Folder, number: int) -> Folder:
    """Return the folder of one trial within the study's folder."""
    return folder / TRIALS / f"{number:05d}"


@dataclass(frozen=True)
class Trial:
    """The function that Ray Tune calls for each trial.

    It runs in its own process and launches the workers.

    Attributes:
        base: The configuration that every trial starts from, as JSON.
        folder: The folder of the study.
        parent: The MLflow run of the study.
        settings: The settings of every trial, by number.
        reported: The number of epochs that each trial had reported when the study was started.
        source: Tags that record who started the study, and with which code.
        token: The token under which the workers listen for notices to the study.
    """

    base: str
    folder: str
    parent: RunRef
    settings: list[Settings]
    reported: list[int]
    source: dict[str, str]
    token: str

    def __call__(self, number: int) -> None:
        """Train the trial, and report its epochs to Ray Tune.

        The last report has `stopped` if a notice has stopped the trial, and `failed` with the error
        if it must not be tried again. Ray Tune starts a trial again whose process was lost.
        """
        from ray import tune as ray_tune

        if is_told(self.token):
            ray_tune.report({"stopped": ""})
            return
        try:
            self._train(number)
        except Terminated as stopped:
            # The trial itself does not know that the study's command goes on with it.
            ray_tune.report({"stopped": stopped.done.removesuffix(f"; {GOES_ON}")})
        except Exception as error:
            cause = find_user_error(error)
            if cause is None:
                raise
            ray_tune.report({"failed": str(cause)})

    def _train(self, number: int) -> None:
        from ray import tune as ray_tune
        from ray.tune.integration.ray_train import TuneReportCallback

        config = trial_config(Config.model_validate_json(self.base), self.settings[number])
        study_folder = folder_at(self.folder)
        folder = trial_folder(study_folder, number)
        make_folder(folder)
        # The process is killed when the trial is stopped, so the driver ends the run.
        shard_set = ShardSet.open(config.shards_folder, config.data.remote_reading)
        run = _patiently(
            lambda: begin_run(
                config,
                kind="trial",
                shard_set=shard_set,
                run_id=self._earlier_run(folder, number),
                parent_run_id=self.parent.run_id,
                tags={**self.source, NUMBER_TAG: str(number)},
            ),
            config.cluster.wait_seconds,
        )
        write_json(folder / TRIAL_FILE, {"params": self.settings[number], "run_id": run.run_id})
        if (init := saved_init(config, study_folder)) is not None:
            log_init(run, folder, init, init.plan(config, shard_set))
        last = last_checkpoint(folder / "checkpoints")
        if last is not None:
            # A kill can come between a checkpoint and its report. Then the checkpoint has epochs
            # that were not reported.
            for epoch, score in enumerate(last.state.scores, start=1):
                if epoch > self.reported[number]:
                    # JSON stores scores that are not finite as null.
                    ray_tune.report({"epoch": epoch, "score": math.nan if score is None else score})
            if has_ended(config.training, last.state):
                return
        run_training(
            config,
            folder,
            run,
            callbacks=[TuneReportCallback()],
            init_folder=study_folder,
            study_token=self.token,
        )

    def _earlier_run(self, folder: Folder, number: int) -> str | None:
        """Return the run that this trial had before the study was interrupted, or None."""
        noted = folder / TRIAL_FILE
        if exists(noted):
            return str(_read_note(noted)["run_id"])
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


def collect_trials(
    base: Config, folder: Folder, shard_set: ShardSet, journal: StudyJournal, numbers: list[int]
) -> list[dict[str, Any]]:
    """Return the results of the trials that have a finite score, best first.

    Args:
        base: The configuration that every trial starts from.
        folder: The folder of the study.
        shard_set: The shard set.
        journal: The journal of the study.
        numbers: The numbers of the trials to look at.

    Returns:
        A dictionary for each trial, with the fields that `tune` describes.
    """
    objective = objective_of(base, shard_set)
    trials = []
    for number in numbers:
        noted = trial_folder(folder, number) / TRIAL_FILE
        best = best_checkpoint(noted.parent / "checkpoints")
        if best is None or best.state.score is None or not math.isfinite(best.state.score):
            continue
        trial = _read_note(noted)
        config = trial_config(base, trial["params"])
        run = run_ref(base, "trial", trial["run_id"])
        result = training_result(config, noted.parent, run, shard_set)
        log_best(run, result)
        trials.append(
            {
                "id": noted.parent.name,
                "params": trial["params"],
                objective.selection: result["score"],
                "forward_flops": result["forward_flops"],
                "parameters": result["parameters"],
                "epochs": result["epochs"],
                "stopped_early": stopped_at(journal, number, config.training.epochs) is not None,
                "run_id": trial["run_id"],
                "checkpoint": result["checkpoint"],
            }
        )
    # If values are equal, the trial with fewer FLOPs comes first.
    return sorted(
        trials,
        key=lambda trial: (-objective.signed(trial[objective.selection]), trial["forward_flops"]),
    )


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
    run = replace(parent, run_id=_read_note(noted)["run_id"])
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
        found = _status(mlflow_client, _read_note(noted)["run_id"])
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


def _read_note(path: Folder) -> dict[str, Any]:
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
