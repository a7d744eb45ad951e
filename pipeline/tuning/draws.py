"""The settings that a study's sampler has drawn, and what it was told of them."""

from pipeline.config.conditions import Settings
from pipeline.config.sampler import Outcome, Sampler
from pipeline.errors import UserError
from pipeline.tuning.journal import Begin, Failure, Refusal, Report
from pipeline.tuning.study import Study
from pipeline.tuning.trial_records import TrialRecords


class Draws:
    """A sampler, asked and told as the journal says.

    A killed study repeats the calls in the order of the journal, so that the sampler goes on as if
    it had never stopped.

    Args:
        study: The study.
        sampler: A new sampler.

    Attributes:
        asked: The number of settings that were drawn.
        accepted: The number of these that are trials.
    """

    def __init__(self, study: Study, sampler: Sampler) -> None:
        self._study, self._sampler = study, sampler
        self._read = 0
        self._records = TrialRecords()
        self.asked = 0
        self.accepted = 0
        self._told: dict[int, Outcome] = {}

    def catch_up(self) -> None:
        """Take the entries that were added to the journal.

        Raises:
            UserError: The sampler draws other settings than it did before.
        """
        entries = self._study.journal.entries
        while self._read < len(entries):
            entry = entries[self._read]
            self._read += 1
            self._records.add(entry)
            match entry:
                case Begin() | Refusal():
                    self._drawn(entry)
                case Report() | Failure():
                    self._tell_of(entry.trial)
                case _:
                    pass

    def ask(self) -> Settings | None:
        """Draw the next settings; None if there are no others. The caller adds them as an entry."""
        self.catch_up()
        settings = self._sampler.ask()
        self.asked += settings is not None
        return settings

    def _drawn(self, entry: Begin | Refusal) -> None:
        if entry.draw == self.asked:
            settings = self._sampler.ask()
            self.asked += 1
            if settings != entry.settings:
                raise UserError(
                    f"{self._study.folder}: search {self._study.section.search!r} draws other "
                    f"settings than when the study was begun: {settings} instead of "
                    f"{entry.settings}; take the same versions of optuna and scipy, or run again "
                    "with --fresh"
                )
        if isinstance(entry, Refusal):
            self._tell(entry.draw, Outcome(None))
        elif self._study.seed_index(entry.seed) == 0:
            self.accepted += 1

    def _tell_of(self, trial: int) -> None:
        """Tell the sampler of the settings of a trial, if all of their trainings have ended."""
        record = self._records[trial]
        if self._study.is_confirming(record):
            return
        if self._study.reached_end(record) or record.error is not None:
            outcome = self._study.outcome(self._records, record.draw)
            if outcome is not None:
                self._tell(record.draw, outcome)

    def _tell(self, draw: int, outcome: Outcome) -> None:
        before = self._told.get(draw)
        if before is None or (before.values is None and outcome.values is not None):
            self._told[draw] = outcome
            self._sampler.tell(draw, outcome)
