"""95% confidence intervals of a metric's mean over samples."""

import numpy as np

LEVEL = 0.95
_RESAMPLES = 999


def share_interval(right: int, samples: int) -> tuple[float, float]:
    """Return Wilson's interval of a share (Journal of the American Statistical Association 22).

    Args:
        right: The number of samples that are right.
        samples: The number of samples, at least 1.
    """
    from scipy.stats import binomtest

    low, high = binomtest(right, samples).proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def mean_interval(
    values: np.ndarray, units: np.ndarray, *, is_right_or_wrong: bool
) -> tuple[float, float] | None:
    """Return the interval of a mean; None if there are too few samples, or one is infinite.

    It is Wilson's for samples that are right or wrong, and a bootstrap's percentiles otherwise.
    The bootstrap draws units, each with all its samples.

    Args:
        values: The value of each sample, float64 `[samples]`.
        units: The unit of each sample, such as its recording, int `[samples]`.
        is_right_or_wrong: Whether each value is 0 or 1.
    """
    from scipy.stats import bootstrap

    _, rows = np.unique(units, return_inverse=True)
    sums, counts = np.bincount(rows, weights=values), np.bincount(rows)
    if is_right_or_wrong and len(sums) == len(values):
        return share_interval(int(values.sum()), len(values)) if len(values) else None
    if len(sums) < 2 or not np.isfinite(values).all():
        return None
    found = bootstrap(
        (sums, counts.astype(np.float64)),
        lambda some, sizes, axis: some.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, 10**7 // len(sums)),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
