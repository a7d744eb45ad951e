"""Run a study's trials under Ray Tune: choose the open ones, decide on them, and show progress."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.interrupts import restore_signal_handlers
from pipeline.config.load import with_values
from pipeline.config.search import Settings
from pipeline.config.study import StudyConfig
from pipeline.config.tree import Config
from pipeline.runs.console import Bar, Console
from pipeline.runs.outbox import RunRef
from pipeline.runs.tracking import source_tags
from pipeline.runs.user_errors import raise_user_errors
from pipeline.training.objectives import objective_class
from pipeline.training.train import EPOCHS
from pipeline.tuning.journal import StudyJournal
from pipeline.tuning.schedulers import DEFAULT_SCHEDULER, SCHEDULERS, Decisions
from pipeline.tuning.trials import Trial, end_trial

NUMBER = "trial"
"""Ray Tune's only hyperparameter: the number of the trial, which stands for its settings."""


@dataclass(frozen=True)
class Study:
    """A study that is running.

    Attributes:
        base: The configuration that every trial starts from.
        section: The section `study` of the configuration.
        folder: The folder of the study.
        run: The parent MLflow run.
        settings: The settings of every trial, by number.
        journal: The journal of the reports so far.
    """

    base: Config
    section: StudyConfig
    folder: Path
    run: RunRef
    settings: list[Settings]
    journal: StudyJournal

    def epochs(self, trial: int) -> int:
        """Return the number of epochs of a trial that is not stopped."""
        return int(self.settings[trial].get(EPOCHS, self.base.training.epochs))

    def stops_early(self, trial: int, scores: list[float]) -> bool:
        """Return whether the early stopping of a trial ends it after epochs with these scores."""
        rule = with_values(self.base, self.settings[trial]).training.early_stopping
        return rule is not None and rule.stops(scores)

    @property
    def most_epochs(self) -> int:
        """The most epochs that a trial of the space can have, even if no trial so far has them."""
        searched = self.section.space.get(EPOCHS)
        if searched is None or searched.choice is None:
            return self.base.training.epochs
        return max(map(int, searched.choice))

    def has_ended(self, trial: int) -> bool:
        """Return whether the trial has reached its end, was stopped, or has failed for good."""
        reached = self.journal.epochs(trial) >= self.epochs(trial)
        return reached or self.journal.is_stopped(trial) or trial in self.journal.errors

    def ended(self, errors: Mapping[int, str] | None = None) -> dict[int, bool]:
        """Return the trials that have ended, by number, and whether they ended without an error.

        Args:
            errors: The errors of trials that have just failed.
        """
        failed = {**self.journal.errors, **(errors or {})}
        return {
            number: number not in failed
            for number in range(len(self.settings))
            if number in failed or self.has_ended(number)
        }

    def open_trials(self) -> list[int]:
        """Return the numbers of the trials that have not ended."""
        return [number for number in range(len(self.settings)) if not self.has_ended(number)]


def run_trials(study: Study, concurrent: int, console: Console) -> dict[int, str]:
    """Run the trials that have not ended, and return their errors by trial.

    Args:
        study: The study.
        concurrent: The number of trials that run at the same time.
        console: The console, which shows the progress.

    Raises:
        KeyboardInterrupt: The study was interrupted.
    """
    numbers = study.open_trials()
    if not numbers:
        return {}
    scheduler = SCHEDULERS[DEFAULT_SCHEDULER](study.section, study.most_epochs)
    decisions = Decisions(study.journal, scheduler, study.stops_early)
    trial = Trial(
        study.base.model_dump_json(),
        str(study.folder),
        study.run,
        study.settings,
        [study.journal.epochs(number) for number in range(len(study.settings))],
        source_tags(),
    )
    errors: dict[int, str] = {}
    with StudyBar(study, console) as bar:
        callback = _callback(study, bar, errors)
        errors |= _run(study, trial, decisions, numbers, concurrent, callback)
    for number in numbers:
        # On SIGINT, Ray Tune ends as if every trial had ended.
        if number not in errors and not study.has_ended(number):
            raise KeyboardInterrupt
    return errors


def _run(
    study: Study, trial: Trial, decisions: Decisions, numbers: list[int], concurrent: int,
    callback: Any,
) -> dict[int, str]:  # fmt: skip
    """Run the trials and return their errors by trial."""
    from ray import tune as ray_tune

    def run_trial(params: dict[str, Any]) -> None:
        trial(params[NUMBER])

    storage = study.folder / "ray"
    tuner = ray_tune.Tuner(
        # The workers reserve CPUs. The process that launches them needs none, but Ray Tune does not
        # accept a request for no resources.
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
            verbose=0,
        ),
    )
    try:
        with raise_user_errors(), restore_signal_handlers():
            results = tuner.fit()
        return {
            int(Path(result.path).name): _reason(result.error)
            for result in results
            if result.error is not None
        }
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class StudyBar:
    """The progress bar of a study: finished epochs out of all epochs of its trials.

    When a trial is stopped, its remaining epochs no longer count.
    """

    def __init__(self, study: Study, console: Console) -> None:
        self._study, self._console = study, console
        assert study.base.trained_for is not None  # `open_shards` has checked it
        self._objective = objective_class(study.base.trained_for.kind)
        self._ended = {n for n in range(len(study.settings)) if study.has_ended(n)}
        self._epochs = [study.journal.epochs(number) for number in range(len(study.settings))]
        self._context = console.bar("tune", self._total(), "epochs", completed=sum(self._epochs))
        self._bar: Bar | None = None

    def __enter__(self) -> "StudyBar":
        self._bar = self._context.__enter__()
        self._show()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def epoch(self, trial: int, epoch: int, score: float) -> None:
        """Show that a trial has finished an epoch."""
        settings = self._study.settings[trial]
        values = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())
        self._console.notice(
            f"trial {trial} ({values}): epoch {epoch}/{self._study.epochs(trial)}, "
            f"val_{self._objective.selection} {self._objective.signed(score):.4f}"
        )
        self._epochs[trial] = max(epoch, self._epochs[trial])
        self._show()

    def end(self, trial: int) -> None:
        """Show that a trial has ended."""
        self._ended.add(trial)
        self._show()

    def notice(self, text: str) -> None:
        """Show one line beside the bar."""
        self._console.notice(text)

    def _total(self) -> int:
        """Return the number of finished and remaining epochs."""
        return sum(
            epochs if number in self._ended else self._study.epochs(number)
            for number, epochs in enumerate(self._epochs)
        )

    def _show(self) -> None:
        assert self._bar is not None
        note = f"trial {len(self._ended)}/{len(self._study.settings)}"
        self._bar.update(sum(self._epochs), note, total=self._total())


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


def _callback(study: Study, bar: StudyBar, errors: dict[int, str]) -> Any:
    """Return a Ray Tune callback that shows each epoch and sets the status of ended trials' runs.

    Args:
        study: The study.
        bar: The progress bar.
        errors: A dictionary that takes the errors, by trial.
    """
    from ray.tune import Callback

    class Progress(Callback):
        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if "score" in result:
                bar.epoch(trial.config[NUMBER], result["epoch"], result["score"])

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._end(trial.config[NUMBER], "FINISHED")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            # The error itself is reported at the end; Ray Tune has not stored it yet.
            errors[trial.config[NUMBER]] = "ended with an error"
            self._end(trial.config[NUMBER], "FAILED")

        def _end(self, number: int, status: str) -> None:
            end_trial(study.folder, study.run, number, status, study.journal, study.epochs(number))
            bar.end(number)

        # Ray Tune pickles its callbacks with the study's state, but a terminal cannot be pickled.
        def __reduce__(self) -> Any:
            return Callback, ()

    return Progress()
