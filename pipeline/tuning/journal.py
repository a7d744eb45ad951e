"""The journal of a study: every report of its trials, in the order of arrival.

    {"trial": 3, "epoch": 1, "score": 0.448, "stop": false}      a report, and its decision
    {"trial": 5, "error": "training.batch_size is 512, …"}       a trial that ended with an error

Each entry is one line, of `reports.jsonl` or of objects (`pipeline.tuning.journal_lines`). It is
stored before its decision takes effect. So a study that is killed at any moment continues from
exactly the decisions that it made.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.tuning.journal_lines import journal_lines


@dataclass(frozen=True)
class Report:
    """One epoch of one trial.

    Attributes:
        trial: The number of the trial, from 0.
        epoch: The number of epochs that the trial has finished, from 1.
        score: The score that ranks it; None if it was not finite.
        stop: The decision: whether the trial was stopped after this epoch.
    """

    trial: int
    epoch: int
    score: float | None
    stop: bool

    def __post_init__(self) -> None:
        if not (_is_count(self.trial, 0) and _is_count(self.epoch, 1)):
            raise ValueError("trial and epoch are not counts")
        if self.score is not None and not (
            isinstance(self.score, int | float) and math.isfinite(self.score)
        ):
            raise ValueError("score is not a finite number")
        if not isinstance(self.stop, bool):
            raise ValueError("stop is not true or false")


@dataclass(frozen=True)
class Failure:
    """A trial that ended with an error and is not retried.

    Attributes:
        trial: The number of the trial, from 0.
        error: The text of the error.
    """

    trial: int
    error: str

    def __post_init__(self) -> None:
        if not _is_count(self.trial, 0) or not isinstance(self.error, str):
            raise ValueError("trial is not a count, or error is not a text")


class StudyJournal:
    """The journal in a study's folder. Opening it reads its entries.

    Args:
        folder: The folder of the study, which must exist if it is local.

    Raises:
        UserError: A line is damaged, but not the last one of a local file: a kill can have left
            that one unfinished. Or the journal cannot be read.
    """

    def __init__(self, folder: Folder) -> None:
        self._lines = journal_lines(folder)
        self.reports: list[Report] = []
        self.errors: dict[int, str] = {}
        self._read()

    def append(self, entry: Report | Failure) -> None:
        """Add an entry. When this returns, the entry is stored.

        Raises:
            UserError: The entry cannot be written. No part of it is stored.
        """
        self._lines.append((json.dumps(asdict(entry), allow_nan=False) + "\n").encode())
        self._note(entry)

    def epochs(self, trial: int) -> int:
        """Return the last epoch that a trial has reported; 0 before its first report."""
        return max((r.epoch for r in self.reports if r.trial == trial), default=0)

    def scores(self, trial: int) -> list[float]:
        """Return the finite scores that a trial has reported, in order."""
        reports = (report for report in self.reports if report.trial == trial)
        return [report.score for report in reports if report.score is not None]

    def is_stopped(self, trial: int) -> bool:
        """Return whether a decision stopped the trial."""
        return any(report.stop for report in self.reports if report.trial == trial)

    def _read(self) -> None:
        """Read the entries, and cut off a last line that a kill left unfinished."""
        lines = self._lines.read()
        for number, line in enumerate(lines, start=1):
            try:
                entry = _parse(line)
            except (ValueError, RecursionError) as error:
                if number < len(lines) or not self._lines.drop_last(line):
                    raise UserError(
                        f"{self._lines}: line {number} is damaged ({error}); the study cannot go "
                        "on from it: run again with --fresh"
                    ) from None
                return
            self._note(entry)

    def _note(self, entry: Report | Failure) -> None:
        if isinstance(entry, Report):
            self.reports.append(entry)
        else:
            self.errors[entry.trial] = entry.error


def _parse(line: bytes) -> Report | Failure:
    """Return the entry in a line.

    Raises:
        ValueError: The line is not an entry, or is cut short.
    """
    if not line.endswith(b"\n"):
        raise ValueError("it has no end")
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    try:
        return Failure(**values) if "error" in values else Report(**values)
    except TypeError:
        raise ValueError("it has other fields") from None


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
