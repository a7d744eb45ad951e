"""The progress of a study: a bar, and in a terminal a table of its trials."""

from typing import Any

from pipeline.runs.console import Bar, Console
from pipeline.training.objectives import objective_class
from pipeline.tuning.study import Study
from pipeline.tuning.study_table import study_table

_OTHER_LINES = 8
"""The lines of a terminal that are left to the table's frame, the bar and notices."""


class StudyBar:
    """The progress bar of a study: finished epochs out of all epochs of its trials.

    In a terminal, a table of the trials stands above it; elsewhere, each epoch gets a line.

    When a trial is stopped, its remaining epochs no longer count. Trials that have not begun count
    with the epochs of the configuration, once for each setting.
    """

    def __init__(self, study: Study, console: Console) -> None:
        self._study, self._console = study, console
        assert study.base.trained_for is not None  # `open_shards` has checked it
        self._objective = objective_class(study.base.trained_for.kind)
        self._ended = set(study.ended())
        self._running: set[int] = set()
        self._epochs = {number: each.epochs for number, each in study.records.items()}
        self._context = console.bar("tune", self._total(), "epochs", completed=self._done())
        self._bar: Bar | None = None

    def __enter__(self) -> "StudyBar":
        self._bar = self._context.__enter__()
        self._show()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def begin(self, trial: int) -> None:
        """Show that a trial is running."""
        self._running.add(trial)
        self._show()

    def leave(self, trial: int) -> None:
        """Show that a trial is not running any more: it has ended, or waits for others."""
        self._running.discard(trial)
        self._show()

    def epoch(self, trial: int, epoch: int, score: float) -> None:
        """Show that a trial has finished an epoch."""
        if self._console.terminal_height is None:
            settings = self._study.records[trial].settings
            values = ", ".join(
                f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()
            )
            self._console.notice(
                f"trial {trial} ({values}): epoch {epoch}/{self._study.epochs(trial)}, "
                f"val_{self._objective.selection} {self._objective.signed(score):.4f}"
            )
        self._epochs[trial] = max(epoch, self._epochs.get(trial, 0))
        self._show()

    def end(self, trial: int) -> None:
        """Show that a trial has ended."""
        self._ended.add(trial)
        self._show()

    def notice(self, text: str) -> None:
        """Show one line beside the bar."""
        self._console.notice(text)

    def _to_begin(self) -> int:
        """Return the number of settings of which no trial has begun."""
        drawn = {record.draw for record in self._study.records.values()}
        return max(0, self._study.section.trials - len(drawn))

    def _done(self) -> int:
        return sum(self._epochs.values())

    def _total(self) -> int:
        """Return the number of finished and remaining epochs."""
        begun = sum(
            self._epochs.get(number, 0)
            if number in self._ended
            else self._study.epochs_of(record.settings)
            for number, record in self._study.records.items()
        )
        return begun + self._to_begin() * self._study.base.training.epochs

    def _show(self) -> None:
        assert self._bar is not None
        trials = len(self._study.records) + self._to_begin()
        if (height := self._console.terminal_height) is not None:
            rows = max(3, height - _OTHER_LINES)
            self._bar.table(*study_table(self._study, self._objective, self._running, rows))
        self._bar.update(self._done(), f"trial {len(self._ended)}/{trials}", total=self._total())
