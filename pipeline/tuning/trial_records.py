"""The trials of a study, as its journal tells of them."""

from dataclasses import dataclass, field

from pipeline.config.conditions import Settings
from pipeline.tuning.journal_entries import (
    Begin,
    Entry,
    Failure,
    Generation,
    Handover,
    Note,
    Refusal,
    Report,
)


@dataclass
class TrialRecord:
    """One trial: the training of settings from one seed.

    Attributes:
        number: The number of the trial, from 0, in the order in which trials began.
        draw: The number of its settings, in the order of the sampler.
        seed: The seed of the training.
        settings: The settings with which it trains now.
        scores: The score of each epoch that was reported; None if it was not finite.
        is_stopped: Whether a decision stopped it.
        error: The error that ended it; None if it has none, or was tried again since.
        is_given_up: Whether it is not tried again after this error.
        notes: What happened to it.
        handovers: The weights of others that it took over.
        seconds: How long the epochs that it has reported took.
    """

    number: int
    draw: int
    seed: int
    settings: Settings
    scores: dict[int, float | None] = field(default_factory=dict)
    is_stopped: bool = False
    error: str | None = None
    is_given_up: bool = False
    notes: list[str] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def epochs(self) -> int:
        """The number of epochs that it has finished."""
        return max(self.scores, default=0)

    @property
    def finite_scores(self) -> list[float]:
        """The finite scores, in order."""
        return [score for _, score in sorted(self.scores.items()) if score is not None]

    @property
    def best_score(self) -> float | None:
        """The highest finite score, or None."""
        return max(self.finite_scores, default=None)


class TrialRecords(dict[int, TrialRecord]):
    """The trials of a journal, by number."""

    def add(self, entry: Entry) -> None:
        """Take the next entry.

        A journal of an earlier version has reports of a trial before the entry that begins it.
        """
        if isinstance(entry, Refusal | Generation):
            return
        record = self.setdefault(entry.trial, TrialRecord(entry.trial, entry.trial, 0, {}))
        match entry:
            case Begin():
                record.draw, record.seed = entry.draw, entry.seed
                record.settings = entry.settings
            case Report():
                record.scores.setdefault(entry.epoch, entry.score)
                record.is_stopped |= entry.stop
                record.seconds += entry.seconds
                record.error, record.is_given_up = None, False
            case Handover():
                record.settings = entry.settings
                record.handovers.append(entry)
            case Note():
                record.notes.append(entry.note)
            case Failure():
                record.error, record.is_given_up = entry.error, entry.final
