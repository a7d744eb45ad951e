"""The trials of a study under Ray Tune: which are run, what decides over them, what is shown."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.interrupts import restore_signal_handlers
from pipeline.config.search import Settings
from pipeline.config.study import StudyConfig
from pipeline.config.tree import Config
from pipeline.runs.console import Bar, Console
from pipeline.runs.outbox import RunRef
from pipeline.runs.tracking import source_tags
from pipeline.runs.user_errors import raise_user_errors
from pipeline.training.objectives import objective_for
from pipeline.training.train import EPOCHS
from pipeline.tuning.journal import StudyJournal
from pipeline.tuning.schedulers import DEFAULT_SCHEDULER, SCHEDULERS, Decisions
from pipeline.tuning.trials import Trial, end_trial

NUMBER = "trial"
"""Ray Tune's one hyperparameter: the number of the trial, which stands for its settings."""


@dataclass(frozen=True)
class Study:
    """A study that is under way.

    Attributes:
        base: what every trial starts from.
        section: the configuration's section `study`.
        folder: of the study.
        run: the parent MLflow run.
        settings: of every trial, by number.
        journal: of the reports so far.
    """

    base: Config
    section: StudyConfig
    folder: Path
    run: RunRef
    settings: list[Settings]
    journal: StudyJournal

    def epochs(self, trial: int) -> int:
        """Epochs of a trial if it is not stopped."""
        return int(self.settings[trial].get(EPOCHS, self.base.training.epochs))

    @property
    def most_epochs(self) -> int:
        """Epochs that any trial of the space can have; of the trials so far none may have them."""
        searched = self.section.space.get(EPOCHS)
        if searched is None or searched.choice is None:
            return self.base.training.epochs
        return max(map(int, searched.choice))

    def has_ended(self, trial: int) -> bool:
        """Whether the trial has reached its end, was stopped, or failed for good."""
        reached = self.journal.epochs(trial) >= self.epochs(trial)
        return reached or self.journal.is_stopped(trial) or trial in self.journal.errors

    def ended(self, errors: Mapping[int, str] | None = None) -> dict[int, bool]:
        """The trials that have ended, by number, and whether they ended well.

        Args:
            errors: of trials that have just failed.
        """
        failed = {**self.journal.errors, **(errors or {})}
        return {
            number: number not in failed
            for number in range(len(self.settings))
            if number in failed or self.has_ended(number)
        }

    def open_trials(self) -> list[int]:
        """Numbers of the trials that have not ended."""
        return [number for number in range(len(self.settings)) if not self.has_ended(number)]


def run_trials(study: Study, concurrent: int, console: Console) -> dict[int, str]:
    """Run the trials that have not ended; returns what went wrong, by trial.

    Args:
        concurrent: trials at once.

    Raises:
        KeyboardInterrupt: the study was interrupted.
    """
    numbers = study.open_trials()
    if not numbers:
        return {}
    scheduler = SCHEDULERS[DEFAULT_SCHEDULER](study.section, study.most_epochs)
    decisions = Decisions(study.journal, scheduler)
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
        # Ray Tune ends on SIGINT as if every trial had ended.
        if number not in errors and not study.has_ended(number):
            raise KeyboardInterrupt
    return errors


def _run(
    study: Study, trial: Trial, decisions: Decisions, numbers: list[int], concurrent: int,
    callback: Any,
) -> dict[int, str]:  # fmt: skip
    """Returns what went wrong, by trial."""
    from ray import tune as ray_tune

    def run_trial(params: dict[str, Any]) -> None:
        trial(params[NUMBER])

    storage = study.folder / "ray"
    tuner = ray_tune.Tuner(
        # The workers reserve CPUs; the process that launches them needs none of its own, but Ray
        # Tune does not take a request for nothing at all.
        ray_tune.with_resources(run_trial, {"memory": 1}),
        param_space={NUMBER: ray_tune.grid_search(numbers)},
        tune_config=ray_tune.TuneConfig(
            max_concurrent_trials=concurrent,
            scheduler=_scheduler(decisions),
            trial_dirname_creator=lambda trial: str(trial.config[NUMBER]),
        ),
        run_config=ray_tune.RunConfig(
            # A name of its own each time: resuming is the journal's and our checkpoints' business.
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
    """The bar of a study: epochs done of those that the trials have before them.

    The epochs that a stopped trial does not do are no longer among those to be done.
    """

    def __init__(self, study: Study, console: Console) -> None:
        self._study, self._console = study, console
        objective = objective_for(study.base.data.target.kind)
        assert objective is not None
        self._objective = objective
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
        """A trial has finished an epoch."""
        settings = self._study.settings[trial]
        values = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())
        self._console.notice(
            f"trial {trial} ({values}): epoch {epoch}/{self._study.epochs(trial)}, "
            f"val_{self._objective.selection} {self._objective.signed(score):.4f}"
        )
        self._epochs[trial] = max(epoch, self._epochs[trial])
        self._show()

    def end(self, trial: int) -> None:
        """A trial has ended."""
        self._ended.add(trial)
        self._show()

    def notice(self, text: str) -> None:
        """One line beside the bar."""
        self._console.notice(text)

    def _total(self) -> int:
        """Epochs done and to be done."""
        return sum(
            epochs if number in self._ended else self._study.epochs(number)
            for number, epochs in enumerate(self._epochs)
        )

    def _show(self) -> None:
        assert self._bar is not None
        note = f"trial {len(self._ended)}/{len(self._study.settings)}"
        self._bar.update(sum(self._epochs), note, total=self._total())


def _scheduler(decisions: Decisions) -> Any:
    """Ray Tune's side of `Decisions`."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class Scheduler(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if "score" not in result:
                return TrialScheduler.CONTINUE
            stop = decisions.report(trial.config[NUMBER], result["epoch"], result["score"])
            return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

        # Ray Tune pickles its scheduler for a restoration of its own, which is never made.
        def __reduce__(self) -> Any:
            return FIFOScheduler, ()

    return Scheduler()


def _callback(study: Study, bar: StudyBar, errors: dict[int, str]) -> Any:
    """Ray Tune's callback: shows each epoch, and gives a trial's run its status as it ends.

    Args:
        errors: takes what went wrong, by trial.
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
            # What went wrong is told at the end; here Ray Tune has not stored it yet.
            errors[trial.config[NUMBER]] = "ended with an error"
            self._end(trial.config[NUMBER], "FAILED")

        def _end(self, number: int, status: str) -> None:
            end_trial(study.folder, study.run, number, status, study.journal, study.epochs(number))
            bar.end(number)

        # Ray Tune pickles its callbacks with the study's state; a terminal cannot be.
        def __reduce__(self) -> Any:
            return Callback, ()

    return Progress()
