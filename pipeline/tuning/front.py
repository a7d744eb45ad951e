"""What a study shows of quality against cost: its Pareto front and a scaling law over it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COSTS = {
    "forward_flops": "FLOPs of a forward pass",
    "parameters": "parameters",
    "memory": "bytes of a worker in training",
    "latency_ms": "milliseconds for one sample",
}
"""The costs of a trial, by their keys, and what they are."""
MIN_TRIALS = 4
"""The fewest trials on which a law of two parameters is fitted."""
_RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Return the numbers of the points that no other one dominates (the Pareto front).

    A point dominates another one if it is at least as high in each coordinate and higher in one. Of
    equal points, all are on the front.
    """
    return [
        number
        for number, point in enumerate(points)
        if not any(_dominates(other, point) for other in points)
    ]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def pareto_front(
    trials: Sequence[Mapping[str, Any]], metric: str, sign: int, cost: str
) -> list[int]:
    """Return the trials that no other trial beats in quality without a higher cost.

    Args:
        trials: The trials. Those without the cost are on no front.
        metric: The key of the metric.
        sign: 1 if a higher metric is better, -1 if a lower one is.
        cost: One of `COSTS`.

    Returns:
        The numbers of the trials on the front, from the cheapest to the dearest. Of trials that are
        equal in both, the first one is taken.
    """
    points = {
        (sign * trial[metric], -trial[cost]): number
        for number, trial in reversed(list(enumerate(trials)))
        if trial.get(cost) is not None
    }
    places = list(points)
    return [points[places[at]] for at in sorted(front(places), key=lambda at: -places[at][1])]


@dataclass(frozen=True)
class ScalingLaw:
    """The power law `loss = coefficient · cost ** -exponent` over the front of a study.

    Attributes:
        coefficient: The loss at a cost of 1.
        exponent: How fast the loss falls.
        low, high: The 95 % interval of the exponent, by a bootstrap over the trials of the front.
        error: The root mean square of the relative error of the law at these trials.
        trials: How many trials it was fitted to.
        cost: One of `COSTS`.
    """

    coefficient: float
    exponent: float
    low: float
    high: float
    error: float
    trials: int
    cost: str

    def at(self, cost: float) -> float:
        """Return the loss that the law gives at a cost."""
        return float(self.coefficient * cost**-self.exponent)


def scaling_law(trials: Sequence[Mapping[str, Any]], cost: str, seed: int = 0) -> ScalingLaw | None:
    """Fit a power law to the validation losses of the Pareto front, on logarithms.

    Kaplan et al., arXiv 2001.08361, equation 1.1: a law over the best model of each cost.

    Args:
        trials: The trials, with `val_loss` and the cost.
        cost: One of `COSTS`.
        seed: The seed of the bootstrap.

    Returns:
        The law; None if fewer than `MIN_TRIALS` trials of the front have a positive loss and cost.
    """
    usable = [
        trial
        for trial in trials
        if trial.get("val_loss") and trial.get(cost) and trial["val_loss"] > 0
    ]
    front = [usable[number] for number in pareto_front(usable, "val_loss", -1, cost)]
    if len(front) < MIN_TRIALS:
        return None
    costs = np.log([float(trial[cost]) for trial in front])
    losses = np.log([float(trial["val_loss"]) for trial in front])
    slope, intercept = np.polyfit(costs, losses, 1)
    random = np.random.default_rng(seed)
    slopes = []
    for picked in random.integers(0, len(front), (_RESAMPLES, len(front))):
        if len(set(picked)) > 1:
            slopes.append(np.polyfit(costs[picked], losses[picked], 1)[0])
    high, low = -np.percentile(slopes, _INTERVAL)
    errors = np.exp(intercept + slope * costs - losses) - 1
    return ScalingLaw(
        coefficient=float(np.exp(intercept)),
        exponent=float(-slope),
        low=float(low),
        high=float(high),
        error=float(np.sqrt(np.mean(errors**2))),
        trials=len(front),
        cost=cost,
    )
