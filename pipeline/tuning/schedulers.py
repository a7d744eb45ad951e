"""The schedulers of a study: after which epoch a trial is stopped."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from pipeline.config.study import StudyConfig
from pipeline.tuning.journal import Report, StudyJournal


class Scheduler(ABC):
    """Decides over the trials of a study, one report after the other."""

    @abstractmethod
    def stops(self, trial: int, epoch: int, score: float) -> bool:
        """Whether a trial is stopped after an epoch.

        It is called once for every report, in the order in which they came. Its answers must be a
        function of these calls alone: a study that was killed repeats them.

        Args:
            trial: number of the trial, from 0.
            epoch: epochs that it has finished, from 1.
            score: finite; the higher, the better.
        """


class SuccessiveHalving(Scheduler):
    """Asynchronous successive halving: Ray's ASHA (arXiv 1810.05934).

    Args:
        epochs: of a trial that is not stopped.
        grace_epochs, reduction_factor: as in `StudyConfig`.
    """

    def __init__(self, *, epochs: int, grace_epochs: int, reduction_factor: int) -> None:
        from ray.tune.schedulers import ASHAScheduler

        self._asha = ASHAScheduler(
            time_attr="epoch",
            metric="score",
            mode="max",
            # One more than there are: a trial that reaches its end ends by itself.
            max_t=epochs + 1,
            grace_period=min(grace_epochs, epochs),
            reduction_factor=reduction_factor,
        )
        self._trials: set[int] = set()

    def stops(self, trial: int, epoch: int, score: float) -> bool:
        """Whether the trial is below the best `1 / reduction_factor` at this epoch."""
        from ray.tune.schedulers import TrialScheduler

        # Ray's scheduler asks a trial for nothing but its id, and the controller for nothing.
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
"""Name → what makes it of the study's section and the most epochs of a trial.

The first one decides over every study.
"""

DEFAULT_SCHEDULER = next(iter(SCHEDULERS))


class Decisions:
    """The decisions over a study's trials, which a kill does not change.

    Ray Tune keeps no scheduler state when a study is restored. So a new scheduler is given the
    journal's reports in the order in which they came. Decisions are then a function of all reports
    in time order, however often the study was killed.

    Args:
        journal: gets every report that counts, with its decision, before the decision is returned.
        scheduler: a new one, which has seen no report.
    """

    def __init__(self, journal: StudyJournal, scheduler: Scheduler) -> None:
        self._journal, self._scheduler = journal, scheduler
        for report in journal.reports:
            if report.score is not None:
                scheduler.stops(report.trial, report.epoch, report.score)

    def report(self, trial: int, epoch: int, score: float) -> bool:
        """Take a report; returns whether the trial is to be stopped.

        A report that the trial repeats, since it resumed from an earlier epoch, does not count
        again. A score that is not finite stops the trial and is compared with none.
        """
        if self._journal.is_stopped(trial):
            return True
        if epoch <= self._journal.epochs(trial):
            return False
        if math.isfinite(score):
            stop = self._scheduler.stops(trial, epoch, score)
            entry = Report(trial, epoch, score, stop)
        else:
            entry = Report(trial, epoch, None, True)
        self._journal.append(entry)
        return entry.stop
