"""A study that is running: its trials, and which of them have ended."""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.config.conditions import Settings
from pipeline.config.early_stopping import EarlyStoppingConfig
from pipeline.config.folders import Folder
from pipeline.config.sampler import Outcome
from pipeline.config.scheduler import Pace, Scheduler
from pipeline.config.schedulers import SCHEDULERS
from pipeline.config.study import EPOCHS, SEED, StudyConfig
from pipeline.config.tree import Config
from pipeline.config.trial_configs import trial_config
from pipeline.runs.outbox import RunRef
from pipeline.tuning.journal import StudyJournal
from pipeline.tuning.trial_records import TrialRecord, TrialRecords

Costs = Callable[[Settings], Mapping[str, float]]


def _no_costs(settings: Settings) -> Mapping[str, float]:
    return {}


def _journal_score(study: "Study", record: TrialRecord) -> float | None:
    return record.best_score


@dataclass(frozen=True)
class Study:
    """A study that is running.

    Attributes:
        base: The configuration that every trial starts from.
        section: The section `study` of the configuration.
        folder: The folder of the study.
        run: The parent MLflow run.
        journal: The journal of the study so far.
        samples_per_epoch: Returns the samples on which an epoch with these settings trains.
        costs: Returns the `flops` and `parameters` of settings.
        final_score: Returns the score that ranks a trial of this study that has ended, or None.
    """

    base: Config
    section: StudyConfig
    folder: Folder
    run: RunRef
    journal: StudyJournal
    samples_per_epoch: Callable[[Settings], int] = lambda settings: 1
    costs: Costs = _no_costs
    final_score: Callable[["Study", TrialRecord], float | None] = _journal_score
    _rules: dict[str, EarlyStoppingConfig | None] = field(default_factory=dict, repr=False)

    @property
    def records(self) -> TrialRecords:
        """The trials that have begun, by number."""
        return self.journal.trials

    def seed_index(self, seed: int) -> int:
        """Return the number of a seed, from 0. Those from `study.seeds` on confirm the best."""
        return 0 if SEED in self.section.space else seed - self.base.seed

    def is_confirming(self, record: TrialRecord) -> bool:
        """Return whether a trial trains the best settings again, after the search."""
        return self.seed_index(record.seed) >= self.section.seeds

    def is_compared(self, trial: int) -> bool:
        """Return whether the scheduler compares a trial: the first one of its settings."""
        return self.seed_index(self.records[trial].seed) == 0

    def config(self, record: TrialRecord) -> Config:
        """Return the configuration of a trial.

        Raises:
            UserError: The values do not go together.
        """
        return trial_config(self.base, {SEED: record.seed, **record.settings})

    def epochs(self, trial: int) -> int:
        """Return the number of epochs of a trial that is not stopped."""
        return self.epochs_of(self.records[trial].settings)

    def epochs_of(self, settings: Settings) -> int:
        """Return the number of epochs of settings that are not stopped."""
        return int(settings.get(EPOCHS, self.base.training.epochs))

    def samples(self, trial: int, epochs: int) -> int:
        """Return the number of samples that a trial has trained on after some epochs."""
        return epochs * self.samples_per_epoch(self.records[trial].settings)

    def stops_early(self, trial: int, scores: list[float]) -> bool:
        """Return whether the early stopping of a trial ends it after epochs with these scores."""
        record = self.records[trial]
        key = json.dumps(record.settings, sort_keys=True)
        if key not in self._rules:  # a configuration takes a while to check
            self._rules[key] = self.config(record).training.early_stopping
        rule = self._rules[key]
        return rule is not None and rule.stops(scores)

    @property
    def most_epochs(self) -> int:
        """The most epochs that a trial of the space can have, even if no trial so far has them."""
        searched = self.section.space.get(EPOCHS)
        return self.base.training.epochs if searched is None else max(map(int, searched.ends))

    def scheduler(self, most_samples_per_epoch: int = 1) -> Scheduler:
        """Return a new scheduler of this study.

        Args:
            most_samples_per_epoch: The most samples of an epoch of any trial.
        """
        own = self.samples_per_epoch({})
        pace = Pace(
            epochs=self.most_epochs,
            samples_per_epoch=own,
            most_samples=self.most_epochs * max(own, most_samples_per_epoch),
            seed=self.base.seed,
        )
        return SCHEDULERS[self.section.scheduler](self.section, pace)

    def reached_end(self, record: TrialRecord) -> bool:
        """Return whether a trial has finished its last epoch or was stopped."""
        return record.is_stopped or record.epochs >= self.epochs_of(record.settings)

    def has_ended(self, trial: int) -> bool:
        """Return whether the trial has reached its end, was stopped, or has failed."""
        record = self.records[trial]
        return self.reached_end(record) or record.error is not None

    def is_cut(self, record: TrialRecord) -> bool:
        """Return whether the scheduler stopped a trial before its last epoch.

        A trial that its own early stopping has ended, or whose score was not finite, was not.
        """
        if not record.is_stopped or record.epochs >= self.epochs_of(record.settings):
            return False
        if record.scores.get(record.epochs) is None:
            return False
        return not self.stops_early(record.number, record.finite_scores)

    def ended(self) -> dict[int, bool]:
        """Return the trials that have ended, by number, and whether they ended without an error."""
        return {
            number: record.error is None
            for number, record in self.records.items()
            if record.error is not None or self.reached_end(record)
        }

    def open_trials(self) -> list[int]:
        """Return the numbers of the trials that have begun and not ended, in order.

        Trials that failed are among them, unless they were given up when the study was done.
        """
        return [
            number
            for number, record in sorted(self.records.items())
            if not self.reached_end(record) and not record.is_given_up
        ]

    def of_draw(self, records: Mapping[int, TrialRecord], draw: int) -> list[TrialRecord]:
        """Return the trials of settings that the search has run, by seed."""
        return self.by_draw(records).get(draw, [])

    def by_draw(self, records: Mapping[int, TrialRecord]) -> dict[int, list[TrialRecord]]:
        """Return the trials that the search has run by the number of their settings, by seed."""
        found: dict[int, list[TrialRecord]] = {}
        for record in sorted(records.values(), key=lambda each: (each.draw, each.seed)):
            if not self.is_confirming(record):
                found.setdefault(record.draw, []).append(record)
        return found

    def wants_seeds(self, trials: list[TrialRecord]) -> bool:
        """Return whether settings are to be trained from all seeds.

        They are if their first training ended well, and was not cut off by the scheduler.

        Args:
            trials: The trials of the settings, by seed.
        """
        first = trials[0]
        well = self.reached_end(first) and first.error is None and first.best_score is not None
        return well and not self.is_cut(first)

    def outcome(self, records: Mapping[int, TrialRecord], draw: int) -> Outcome | None:
        """Return what became of settings; None if a training of them has not ended.

        Args:
            records: The trials, by number.
            draw: The number of the settings.
        """
        trials = self.of_draw(records, draw)
        if any(not self.reached_end(r) and r.error is None for r in trials):
            return None
        if self.wants_seeds(trials) and len(trials) < self.section.seeds:
            return None
        well = [r for r in trials if r.error is None and r.best_score is not None]
        if not well:
            return Outcome(None)
        first = well[0]
        costs = self.costs(first.settings)
        score = statistics.fmean(r.best_score for r in well if r.best_score is not None)
        stopped = first.epochs * self.samples_per_epoch(first.settings)
        return Outcome(
            (score, *(costs[name] for name in self.section.objectives)),
            stopped if self.is_cut(first) else None,
        )
