"""Run a study's trials under Ray Tune: choose the open ones, decide on them, and show progress."""

import time
from pathlib import Path
from typing import Any

from cluster.interrupts import restore_signal_handlers
from pipeline.runs.console import Console
from pipeline.runs.tracking import source_tags
from pipeline.runs.user_errors import raise_user_errors
from pipeline.training.launch import ray_storage
from pipeline.tuning.schedulers import DEFAULT_SCHEDULER, SCHEDULERS, Decisions
from pipeline.tuning.stopping import StudyStop
from pipeline.tuning.study import Study
from pipeline.tuning.study_bar import StudyBar
from pipeline.tuning.trials import Trial, end_trial

NUMBER = "trial"
"""Ray Tune's only hyperparameter: the number of the trial, which stands for its settings."""


def run_trials(study: Study, concurrent: int, console: Console) -> dict[int, str]:
    """Run the trials that have not ended, and return their errors by trial.

    Args:
        study: The study.
        concurrent: The number of trials that run at the same time.
        console: The console, which shows the progress.

    Raises:
        KeyboardInterrupt: The study was interrupted.
        Terminated: The study was told to stop, or a trial was and may not go on by itself. Each
            running trial has saved a checkpoint.
    """
    numbers = study.open_trials()
    if not numbers:
        return {}
    scheduler = SCHEDULERS[DEFAULT_SCHEDULER](study.section, study.most_epochs)
    decisions = Decisions(study.journal, scheduler, study.stops_early)
    stop = StudyStop(console.notice)
    trial = Trial(
        study.base.model_dump_json(),
        str(study.folder),
        study.run,
        study.settings,
        [study.journal.epochs(number) for number in range(len(study.settings))],
        source_tags(),
        stop.token,
    )
    errors: dict[int, str] = {}
    with StudyBar(study, console) as bar:
        callback = _callback(study, bar, errors, stop)
        errors |= _run(study, trial, decisions, numbers, concurrent, callback, stop)
    stop.end(lambda number: number not in errors and not study.has_ended(number))
    for number in numbers:
        # On SIGINT, Ray Tune ends as if every trial had ended.
        if number not in errors and not study.has_ended(number):
            raise KeyboardInterrupt
    return errors


def _run(
    study: Study, trial: Trial, decisions: Decisions, numbers: list[int], concurrent: int,
    callback: Any, stop: StudyStop,
) -> dict[int, str]:  # fmt: skip
    """Run the trials and return their errors by trial."""
    from ray import tune as ray_tune

    def run_trial(params: dict[str, Any]) -> None:
        trial(params[NUMBER])

    with ray_storage(study.folder) as storage:
        tuner = ray_tune.Tuner(
            # The workers reserve CPUs. The process that launches them needs none, but Ray Tune does
            # not accept a request for no resources.
            ray_tune.with_resources(run_trial, {"memory": 1}),
            param_space={NUMBER: ray_tune.grid_search(numbers)},
            tune_config=ray_tune.TuneConfig(
                max_concurrent_trials=concurrent,
                scheduler=_scheduler(decisions),
                trial_dirname_creator=lambda trial: str(trial.config[NUMBER]),
            ),
            run_config=ray_tune.RunConfig(
                # Each launch has a new name, because the journal and our own checkpoints do the
                # resuming.
                name=time.strftime("%Y%m%d-%H%M%S"),
                storage_path=str(storage),
                callbacks=[callback],
                stop=stop.stopper(),
                # Only a lost process is tried again: a trial reports its other errors.
                failure_config=ray_tune.FailureConfig(max_failures=study.base.cluster.max_failures),
                verbose=0,
            ),
        )
        with raise_user_errors(), restore_signal_handlers(), stop.signals():
            results = tuner.fit()
        return {
            int(Path(result.path).name): _reason(result.error)
            for result in results
            if result.error is not None
        }


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _scheduler(decisions: Decisions) -> Any:
    """Return a scheduler for Ray Tune that asks `Decisions`."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class Scheduler(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if "score" not in result:
                return TrialScheduler.CONTINUE
            stop = decisions.report(trial.config[NUMBER], result["epoch"], result["score"])
            return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

        # Ray Tune pickles its scheduler for its own restoration, which is never used.
        def __reduce__(self) -> Any:
            return FIFOScheduler, ()

    return Scheduler()


def _callback(study: Study, bar: StudyBar, errors: dict[int, str], stop: StudyStop) -> Any:
    """Return a Ray Tune callback that shows each epoch and sets the status of ended trials' runs.

    Args:
        study: The study.
        bar: The progress bar.
        errors: A dictionary that takes the errors, by trial.
        stop: What takes the trials that are running, and those that were stopped by a notice.
    """
    from ray.tune import Callback

    class Progress(Callback):
        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            number = trial.config[NUMBER]
            if "score" in result:
                bar.epoch(number, result["epoch"], result["score"])
            if "stopped" in result:
                stop.stopped[number] = result["stopped"]
                if result["stopped"]:
                    bar.notice(f"trial {number}: {result['stopped']}")
            if "failed" in result:
                errors[number] = result["failed"]

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            stop.running.add(trial.config[NUMBER])

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            number = trial.config[NUMBER]
            bar.notice(f"trial {number}: its process was lost; starting it again")

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            number = trial.config[NUMBER]
            if number in stop.stopped:
                self._end(number, "KILLED")
            else:
                self._end(number, "FAILED" if number in errors else "FINISHED")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            # The error itself is reported at the end; Ray Tune has not stored it yet.
            errors[trial.config[NUMBER]] = "ended with an error"
            self._end(trial.config[NUMBER], "FAILED")

        def _end(self, number: int, status: str) -> None:
            stop.running.discard(number)
            end_trial(study.folder, study.run, number, status, study.journal, study.epochs(number))
            if status != "KILLED":
                bar.end(number)

        # Ray Tune pickles its callbacks with the study's state, but a terminal cannot be pickled.
        def __reduce__(self) -> Any:
            return Callback, ()

    return Progress()
