"""The schedulers of a study: they decide after which epoch a trial is stopped."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from pipeline.config.study import StudyConfig
from pipeline.tuning.journal import Report, StudyJournal


class Scheduler(ABC):
    """Decide which trials of a study to stop, one report after another."""

    @abstractmethod
    def stops(self, trial: int, epoch: int, score: float) -> bool:
        """Return whether a trial is stopped after an epoch.

        This is called once for every report, in the order of arrival. The answers must depend only
        on these calls, because a study that was killed repeats them.

        Args:
            trial: The number of the trial, from 0.
            epoch: The number of epochs that it has finished, from 1.
            score: A finite score, where higher is better.
        """


class SuccessiveHalving(Scheduler):
    """Asynchronous successive halving: Ray's ASHA (arXiv 1810.05934).

    Args:
        epochs: The number of epochs of a trial that is not stopped.
        grace_epochs: The same as in `StudyConfig`.
        reduction_factor: The same as in `StudyConfig`.
    """

    def __init__(self, *, epochs: int, grace_epochs: int, reduction_factor: int) -> None:
        from ray.tune.schedulers import ASHAScheduler

        self._asha = ASHAScheduler(
            time_attr="epoch",
            metric="score",
            mode="max",
            # One more than the epochs: a trial that reaches its last epoch ends by itself.
            max_t=epochs + 1,
            grace_period=min(grace_epochs, epochs),
            reduction_factor=reduction_factor,
        )
        self._trials: set[int] = set()

    def stops(self, trial: int, epoch: int, score: float) -> bool:
        """Return whether the trial is below the best `1 / reduction_factor` at this epoch."""
        from ray.tune.schedulers import TrialScheduler

        # Ray's scheduler uses only the trial's id and nothing of the controller.
        who: Any = SimpleNamespace(trial_id=str(trial))
        controller: Any = None
        if trial not in self._trials:
            self._trials.add(trial)
            self._asha.on_trial_add(controller, who)
        result = {"epoch": epoch, "score": score}
        return self._asha.on_trial_result(controller, who, result) == TrialScheduler.STOP


def _successive_halving(study: StudyConfig, epochs: int) -> Scheduler:
    return SuccessiveHalving(
        epochs=epochs, grace_epochs=study.grace_epochs, reduction_factor=study.reduction_factor
    )


SCHEDULERS: dict[str, Callable[[StudyConfig, int], Scheduler]] = {
    "successive_halving": _successive_halving,
}
"""The name of each scheduler, and the function that makes it.

The function takes the configuration's section `study` and the most epochs of a trial. The first
scheduler decides in every study.
"""

DEFAULT_SCHEDULER = next(iter(SCHEDULERS))


class Decisions:
    """The decisions on a study's trials. A kill does not change them.

    Ray Tune keeps no scheduler state when a study is restored. So a new scheduler first receives
    the journal's reports in the order of arrival. The decisions then depend only on all reports in
    that order, however often the study was killed.

    Args:
        journal: The journal. Each report that counts is written to it before its decision is
            returned.
        scheduler: A new scheduler, which has not received a report.
        stops_early: A function that returns whether a trial's own early stopping ends it. It takes
            the number of the trial and the scores of its epochs so far.
    """

    def __init__(
        self,
        journal: StudyJournal,
        scheduler: Scheduler,
        stops_early: Callable[[int, list[float]], bool] = lambda trial, scores: False,
    ) -> None:
        self._journal, self._scheduler, self._stops_early = journal, scheduler, stops_early
        for report in journal.reports:
            if report.score is not None:
                scheduler.stops(report.trial, report.epoch, report.score)

    def report(self, trial: int, epoch: int, score: float) -> bool:
        """Take a report, and return whether to stop the trial.

        A trial that resumed from an earlier epoch may repeat reports. These do not count again. A
        score that is not finite stops the trial and is not compared with others.

        Args:
            trial: The number of the trial, from 0.
            epoch: The number of epochs that it has finished, from 1.
            score: The score, where higher is better.

        Raises:
            UserError: The journal cannot be written.
        """
        if self._journal.is_stopped(trial):
            return True
        if epoch <= self._journal.epochs(trial):
            return False
        if math.isfinite(score):
            stop = self._scheduler.stops(trial, epoch, score)
            stop |= self._stops_early(trial, [*self._journal.scores(trial), score])
            entry = Report(trial, epoch, score, stop)
        else:
            entry = Report(trial, epoch, None, True)
        self._journal.append(entry)
        return entry.stop
