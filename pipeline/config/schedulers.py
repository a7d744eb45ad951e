"""The schedulers of a study: they decide after which epoch a trial is stopped.

Those of Ray Tune decide here as they do in Ray, on the number of samples that a trial has trained
on. Trials with different batch sizes are so compared after equal work.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.config.population import Population
from pipeline.config.scheduler import Pace, Scheduler, SchedulerFields


class NoScheduler(Scheduler):
    """Stop no trial."""

    def stops(self, trial: int, epoch: int, samples: int, score: float) -> bool:
        """Return False."""
        return False


class RayScheduler(Scheduler):
    """A scheduler of Ray Tune that decides on each report alone.

    Args:
        scheduler: The scheduler. Its time attribute is `samples`, its metric `score`.
        pace: How long the trials are.
    """

    def __init__(self, scheduler: Any, pace: Pace) -> None:
        self._scheduler, self._pace = scheduler, pace
        self._trials: dict[int, _Trial] = {}

    def stops(self, trial: int, epoch: int, samples: int, score: float) -> bool:
        """Return the decision of Ray's scheduler."""
        from ray.tune.schedulers import TrialScheduler

        controller: Any = _Controller()
        if trial not in self._trials:
            self._trials[trial] = _Trial(str(trial))
            # Ray draws the bracket of a trial from NumPy's global generator.
            with _numpy_seeded(self._pace.seed, trial):
                self._scheduler.on_trial_add(controller, self._trials[trial])
        # Ray ends a trial at the most samples. Here, it ends by itself.
        result = {"samples": min(samples, self._pace.most_samples), "score": score}
        decision = self._scheduler.on_trial_result(controller, self._trials[trial], result)
        return bool(decision == TrialScheduler.STOP)


@dataclass(frozen=True)
class _Trial:
    """What Ray's schedulers use of a trial."""

    trial_id: str


class _Controller:
    """What Ray's schedulers use of the controller: no trial waits to be run instead of another."""

    def get_live_trials(self) -> list[Any]:
        return []


@contextlib.contextmanager
def _numpy_seeded(*seeds: int) -> Iterator[None]:
    import numpy as np

    before = np.random.get_state()
    np.random.seed(np.random.SeedSequence(seeds).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(before)


def asha(study: SchedulerFields, pace: Pace) -> Scheduler:
    """Return asynchronous successive halving (Li et al., arXiv 1810.05934)."""
    return _halving(study, pace, brackets=1)


def hyperband(study: SchedulerFields, pace: Pace) -> Scheduler:
    """Return asynchronous HyperBand: brackets of ASHA whose first comparisons come later."""
    brackets, epochs = 1, study.grace_epochs * study.reduction_factor
    while epochs <= pace.epochs:
        brackets, epochs = brackets + 1, epochs * study.reduction_factor
    return _halving(study, pace, brackets)


def _halving(study: SchedulerFields, pace: Pace, brackets: int) -> Scheduler:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    most = pace.most_samples + 1
    return RayScheduler(
        AsyncHyperBandScheduler(
            time_attr="samples",
            metric="score",
            mode="max",
            max_t=most,
            grace_period=min(study.grace_epochs * pace.samples_per_epoch, pace.most_samples),
            reduction_factor=study.reduction_factor,
            brackets=brackets,
        ),
        pace,
    )


def median(study: SchedulerFields, pace: Pace) -> Scheduler:
    """Return median stopping (Golovin et al., 2017): below the median of the others' means."""
    from ray.tune.schedulers import MedianStoppingRule

    return RayScheduler(
        MedianStoppingRule(
            time_attr="samples",
            metric="score",
            mode="max",
            grace_period=study.grace_epochs * pace.samples_per_epoch,
        ),
        pace,
    )


def _population(study: SchedulerFields, pace: Pace) -> Scheduler:
    return Population(study.space, study.perturb_epochs, pace)


def _none(study: SchedulerFields, pace: Pace) -> Scheduler:
    return NoScheduler()


SCHEDULERS: dict[str, Callable[[SchedulerFields, Pace], Scheduler]] = {
    "asha": asha,
    "hyperband": hyperband,
    "median": median,
    "pbt": _population,
    "none": _none,
}
"""The schedulers by their names in `study.scheduler`, as functions of the section and the pace."""
