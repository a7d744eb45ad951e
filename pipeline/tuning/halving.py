"""Asynchronous successive halving that goes on, after a kill, from the decisions it has made."""

import math
from types import SimpleNamespace
from typing import Any

from pipeline.tuning.journal import Report, StudyJournal


class Halving:
    """Decides at each report whether a trial goes on; Ray's ASHA (arXiv 1810.05934) is the rule.

    Ray Tune keeps no scheduler state when a study is restored, so this feeds a new scheduler with
    the journal's reports in the order in which they came. Decisions are then a function of all
    reports in time order, however often the study was killed.

    Args:
        journal: gets every report that counts, with its decision, before the decision is returned.
        epochs: of a trial that is not stopped.
        grace_epochs, reduction_factor: as in `StudyConfig`.
    """

    def __init__(
        self, journal: StudyJournal, *, epochs: int, grace_epochs: int, reduction_factor: int
    ) -> None:
        from ray.tune.schedulers import ASHAScheduler

        self._journal = journal
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
        for report in journal.reports:
            if report.score is not None:
                self._falls_behind(report.trial, report.epoch, report.score)

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
            entry = Report(trial, epoch, score, self._falls_behind(trial, epoch, score))
        else:
            entry = Report(trial, epoch, None, True)
        self._journal.append(entry)
        return entry.stop

    def _falls_behind(self, trial: int, epoch: int, score: float) -> bool:
        from ray.tune.schedulers import TrialScheduler

        # Ray's scheduler asks a trial for nothing but its id, and the controller for nothing.
        who: Any = SimpleNamespace(trial_id=str(trial))
        controller: Any = None
        if trial not in self._trials:
            self._trials.add(trial)
            self._asha.on_trial_add(controller, who)
        result = {"epoch": epoch, "score": score}
        return self._asha.on_trial_result(controller, who, result) == TrialScheduler.STOP
