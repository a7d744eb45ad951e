"""The paired test of the gate: could two equally good models differ as much by chance?

If two models are equally good, it is a coin toss which of the two has the better value on a unit (a
sample, or the samples of one recording or group). So every choice of signs of the differences is
equally likely, and the p-value is the share of the choices whose sum is at least as large as the
one observed. This is Fisher's sign-flip permutation test of the mean (The Design of Experiments,
1935, section 21). Where all differences are of the same size, as those of right and wrong answers,
the sum is a count of wins, and the p-value is binomial: McNemar's exact test.
"""

import numpy as np

FEW_UNITS = 13
"""The largest number of units for which all choices of signs are tried; 2 ** 13 of them."""

_SIGNS_AT_ONCE = 1 << 24


def paired_p(differences: np.ndarray, alpha: float) -> float:
    """Return the one-sided p-value of the paired test, that the mean difference is above 0.

    Args:
        differences: How much better one model is than the other on each unit, `[units]`. An
            infinite difference counts as the largest finite one.
        alpha: The level with which the p-value will be compared. It sets how many choices of signs
            are drawn; `smallest_p` of it must not be above it.
    """
    found = differences[differences != 0].astype(np.float64)
    if not len(found):
        return 1.0
    sizes = np.abs(found)
    largest = sizes[np.isfinite(sizes)].max(initial=0.0) or 1.0
    found = np.clip(found, -largest, largest)
    if (np.abs(found) == largest).all():
        return sign_p(int((found > 0).sum()), int((found < 0).sum()))
    found /= largest
    observed = found.sum() - 1e-12 * len(found)  # the same sum in another order counts
    if len(found) <= FEW_UNITS:
        sums = _signs(np.arange(2 ** len(found)), len(found)) @ found
        return float((sums >= observed).mean())
    draws, random = _num_draws(alpha), np.random.default_rng(0)
    step, at_least = max(1, _SIGNS_AT_ONCE // len(found)), 0
    for start in range(0, draws, step):
        size = min(step, draws - start)
        bits = np.unpackbits(
            random.integers(0, 256, (size, -(-len(found) // 8)), np.uint8), axis=1
        )[:, : len(found)]
        at_least += int((2 * (bits @ found) - found.sum() >= observed).sum())
    return (at_least + 1) / (draws + 1)


def sign_p(wins: int, losses: int) -> float:
    """Return the p-value of the one-sided exact sign test.

    It is the probability of at least `wins` wins out of `wins + losses`, each with probability 1/2.
    """
    from scipy.stats import binomtest

    if wins + losses == 0:
        return 1.0
    return float(binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue)


def smallest_p(alpha: float) -> float:
    """Return the smallest p-value that drawn choices of signs can give at a level."""
    return 1 / (_num_draws(alpha) + 1)


def units_needed(alpha: float) -> int:
    """Return the smallest number of units with which a model that wins all of them passes."""
    needed = 1
    while sign_p(needed, 0) > alpha:
        needed += 1
    return needed


def _num_draws(alpha: float) -> int:
    return 9_999 if alpha >= 1e-3 else 199_999


def _signs(choices: np.ndarray, num_units: int) -> np.ndarray:
    """Return the bits of numbers as signs, float64 `[choices, units]`."""
    return 2.0 * (choices[:, None] >> np.arange(num_units) & 1) - 1
