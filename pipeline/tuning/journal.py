"""The journal of a study: everything that its decisions depend on, in the order of arrival.

    {"trial": 3, "draw": 3, "seed": 0, "settings": {"training.learning_rate": 0.001}}
                                                                 a trial that begins
    {"draw": 4, "settings": {…}, "refused": "…", "is_too_dear": false}
                                                                 settings that are not trained
    {"trial": 3, "epoch": 1, "score": 0.448, "stop": false, "seconds": 12.5}
                                                                 a report, and its decision
    {"trial": 3, "epoch": 2, "donor": 1, "settings": {…}, "weights": "9f2c…"}
                                                                 a trial that takes over weights
    {"generation": 2}                            trials have waited, and all handovers are done
    {"trial": 3, "note": "resumed after epoch 1"}                what happened to a trial
    {"trial": 5, "error": "training.batch_size is 512, …", "final": true}
                                                                 a trial that ended with an error

Each entry is one line, of `reports.jsonl` or of objects (`pipeline.tuning.journal_lines`). It is
stored before its decision takes effect. So a study that is killed at any moment continues from
exactly the decisions that it made.
"""

import json
from dataclasses import asdict

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.tuning.journal_entries import (
    Begin,
    Entry,
    Failure,
    Generation,
    Handover,
    Note,
    Refusal,
    Report,
    parse_entry,
)
from pipeline.tuning.journal_lines import journal_lines
from pipeline.tuning.trial_records import TrialRecords

__all__ = [
    "Begin", "Entry", "Failure", "Generation", "Handover", "Note", "Refusal", "Report",
    "StudyJournal",
]  # fmt: skip


class StudyJournal:
    """The journal in a study's folder. Opening it reads its entries.

    Args:
        folder: The folder of the study, which must exist if it is local.

    Attributes:
        entries: All entries, in order.
        reports: The reports among them.
        trials: The trials that they tell of, by number.
        generation: The last epoch at whose end trials have waited for each other; 0 before.

    Raises:
        UserError: A line is damaged, but not the last one of a local file: a kill can have left
            that one unfinished. Or the journal cannot be read.
    """

    def __init__(self, folder: Folder) -> None:
        self._lines = journal_lines(folder)
        self.entries: list[Entry] = []
        self.reports: list[Report] = []
        self.trials = TrialRecords()
        self.generation = 0
        self._read()

    def append(self, entry: Entry) -> None:
        """Add an entry. When this returns, the entry is stored.

        Raises:
            UserError: The entry cannot be written. No part of it is stored.
        """
        self._lines.append((json.dumps(asdict(entry), allow_nan=False) + "\n").encode())
        self._note(entry)

    @property
    def errors(self) -> dict[int, str]:
        """The errors of trials, by number. A trial that was tried again and reports has none."""
        return {n: each.error for n, each in self.trials.items() if each.error is not None}

    def epochs(self, trial: int) -> int:
        """Return the last epoch that a trial has reported; 0 before its first report."""
        return self.trials[trial].epochs if trial in self.trials else 0

    def scores(self, trial: int) -> list[float]:
        """Return the finite scores that a trial has reported, in order."""
        return self.trials[trial].finite_scores if trial in self.trials else []

    def is_stopped(self, trial: int) -> bool:
        """Return whether a decision stopped the trial."""
        return trial in self.trials and self.trials[trial].is_stopped

    def _read(self) -> None:
        """Read the entries, and cut off a last line that a kill left unfinished."""
        lines = self._lines.read()
        for number, line in enumerate(lines, start=1):
            try:
                entry = parse_entry(line)
            except (ValueError, RecursionError) as error:
                if number < len(lines) or not self._lines.drop_last(line):
                    raise UserError(
                        f"{self._lines}: line {number} is damaged ({error}); the study cannot go "
                        "on from it: run again with --fresh"
                    ) from None
                return
            self._note(entry)

    def _note(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.trials.add(entry)
        if isinstance(entry, Report):
            self.reports.append(entry)
        if isinstance(entry, Generation):
            self.generation = entry.generation
