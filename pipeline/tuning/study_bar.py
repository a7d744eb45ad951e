"""The progress bar of a study."""

from typing import Any

from pipeline.runs.console import Bar, Console
from pipeline.training.objectives import objective_class
from pipeline.tuning.study import Study


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
