"""The decisions on the reports of a study's trials. A kill does not change them."""

import math
from collections.abc import Callable

from pipeline.config.scheduler import Scheduler
from pipeline.tuning.journal import Report, StudyJournal


class Decisions:
    """The decisions on a study's trials.

    Ray Tune keeps no scheduler state when a study is restored. So a new scheduler first receives
    the journal's reports in the order of arrival. The decisions then depend only on all reports in
    that order, however often the study was killed.

    Args:
        journal: The journal. Each report that counts is written to it before its decision is
            returned.
        scheduler: A new scheduler, which has not received a report.
        stops_early: A function that returns whether a trial's own early stopping ends it. It takes
            the number of the trial and the scores of its epochs so far.
        samples: A function that returns the number of samples that a trial has trained on. It takes
            the number of the trial and of its epochs.
        is_compared: A function that returns whether the scheduler compares a trial with others.
        is_out_of_time: A function that returns whether the study's time is spent. It takes the
            seconds of the epoch that is reported.
    """

    def __init__(
        self,
        journal: StudyJournal,
        scheduler: Scheduler,
        stops_early: Callable[[int, list[float]], bool] = lambda trial, scores: False,
        samples: Callable[[int, int], int] = lambda trial, epochs: epochs,
        is_compared: Callable[[int], bool] = lambda trial: True,
        is_out_of_time: Callable[[float], bool] = lambda seconds: False,
    ) -> None:
        self._journal, self._scheduler, self._stops_early = journal, scheduler, stops_early
        self._samples, self._is_compared = samples, is_compared
        self._is_out_of_time = is_out_of_time
        for report in journal.reports:
            if report.score is not None:
                self._stops(report.trial, report.epoch, report.score)

    def report(self, trial: int, epoch: int, score: float, seconds: float = 0.0) -> bool:
        """Take a report, and return whether to stop the trial.

        A trial that resumed from an earlier epoch may repeat reports. These do not count again. A
        score that is not finite stops the trial and is not compared with others.

        Args:
            trial: The number of the trial, from 0.
            epoch: The number of epochs that it has finished, from 1.
            score: The score, where higher is better.
            seconds: How long the epoch took.

        Raises:
            UserError: The journal cannot be written.
        """
        if self._journal.is_stopped(trial):
            return True
        if epoch <= self._journal.epochs(trial):
            return False
        if math.isfinite(score):
            stop = self._stops(trial, epoch, score)
            stop |= self._stops_early(trial, [*self._journal.scores(trial), score])
            stop |= self._is_out_of_time(seconds)
            entry = Report(trial, epoch, score, stop, seconds)
        else:
            entry = Report(trial, epoch, None, True, seconds)
        self._journal.append(entry)
        return entry.stop

    def _stops(self, trial: int, epoch: int, score: float) -> bool:
        if not self._is_compared(trial):
            return False
        return self._scheduler.stops(trial, epoch, self._samples(trial, epoch), score)
