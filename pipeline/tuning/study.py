"""A study that is running: its trials, and which of them have ended."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config.folders import Folder
from pipeline.config.search import Settings
from pipeline.config.study import StudyConfig
from pipeline.config.tree import Config
from pipeline.runs.outbox import RunRef
from pipeline.training.train import EPOCHS
from pipeline.tuning.journal import StudyJournal
from pipeline.tuning.trials import trial_config


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
    folder: Folder
    run: RunRef
    settings: list[Settings]
    journal: StudyJournal

    def epochs(self, trial: int) -> int:
        """Return the number of epochs of a trial that is not stopped."""
        return int(self.settings[trial].get(EPOCHS, self.base.training.epochs))

    def stops_early(self, trial: int, scores: list[float]) -> bool:
        """Return whether the early stopping of a trial ends it after epochs with these scores."""
        rule = trial_config(self.base, self.settings[trial]).training.early_stopping
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
