"""Means, paired differences and their intervals over seeds, and a correction for many tests.

A study has few seeds. A bootstrap of five values covers far less than it says, so all intervals are
Student's: they assume that the values over seeds are about normal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        low: The lower end of its interval.
        high: The upper end.
        count: The number of seeds.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """The mean of the differences of two arms over the same seeds.

    Attributes:
        arm: The label of the arm.
        base: The label of the arm whose values were subtracted.
        mean: The mean difference.
        low: The lower end of its interval.
        high: The upper end.
        p: The p-value of the paired t-test, two-sided.
        corrected_p: The p-value after Holm's correction for all tests of the study.
        metric: The name of the metric.
        at: The number at which two curves are compared; None compares numbers.
    """

    arm: str
    base: str
    mean: float
    low: float
    high: float
    p: float
    corrected_p: float
    metric: str
    at: int | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.corrected_p < 1 - CONFIDENCE


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of at least two values, with Student's interval.

    Raises:
        ValueError: There are fewer than two values.
    """
    from scipy import stats

    if len(values) < 2:
        raise ValueError("an interval takes at least two values")
    found = np.asarray(values, dtype=np.float64)
    mean, error = float(found.mean()), float(stats.sem(found))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Mean(mean, mean - half, mean + half, len(values))


def expected(mean: Mean, count: int) -> tuple[float, float]:
    """Return where the mean of other seeds is expected: Student's prediction interval.

    It is wider than the interval of the mean, because the other mean varies, too.

    Args:
        mean: A mean with its interval.
        count: The number of other seeds.
    """
    half = (mean.high - mean.low) / 2 * (1 + mean.count / count) ** 0.5
    return mean.mean - half, mean.mean + half


def difference_of(
    arm: str,
    base: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    metric: str = "accuracy",
    at: int | None = None,
) -> Difference:
    """Return the paired difference of two arms. Its p-value is not corrected yet.

    Args:
        arm: The label of the arm.
        base: The label of the arm that is subtracted.
        ours: The values of the arm, in the order of the seeds.
        theirs: The values of the other.
        metric: The name of the metric.
        at: The number at which two curves are compared.
    """
    from scipy import stats

    apart = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    mean = mean_of(apart.tolist())
    if np.ptp(apart) == 0:  # the t-test would divide by zero
        p = 1.0 if mean.mean == 0 else 0.0
    else:
        p = float(stats.ttest_rel(ours, theirs).pvalue)
    return Difference(arm, base, mean.mean, mean.low, mean.high, p, p, metric, at)


def corrected(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """Return differences with their p-values corrected for their number."""
    p_values = holm([each.p for each in differences])
    return tuple(replace(d, corrected_p=p) for d, p in zip(differences, p_values, strict=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down correction (Holm 1979), in the order given."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
