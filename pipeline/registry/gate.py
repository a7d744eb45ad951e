"""Decide whether a model replaces the champion: a paired test on samples new to both.

Both models answer for the same samples, and `pipeline.registry.paired_test` tests the mean of the
differences. For classifiers, whose answers are right or wrong, this is McNemar's test in its exact
form (Psychometrika 12, 1947). Samples that belong together are one *unit* of the test: the parts of
a recording, and the samples of a group (`data.group`). A model has them right or wrong together, so
they are not as many tosses of a coin.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.config.tree import RegistryConfig
from pipeline.registry.outcomes import Outcomes
from pipeline.registry.paired_test import paired_p, sign_p
from pipeline.training.objectives import Objective
from pipeline.training.objectives.classification import Classification


@dataclass(frozen=True)
class Comparison:
    """A candidate and a champion on the same samples.

    Attributes:
        samples: The number of samples compared.
        total: The sum of the candidate's values of the selection metric. For classifiers, this is
            the number of right answers.
        champion_total: The sum of the champion's values.
        wins: The number of units on which the candidate is better.
        losses: The number of units on which the champion is better.
        objective: The objective of both models.
        units: The number of units; None if each sample is one.
        p: The p-value of the paired test; None if it is that of the wins and losses.
    """

    samples: int
    total: float
    champion_total: float
    wins: int
    losses: int
    objective: type[Objective] = Classification
    units: int | None = None
    p: float | None = None

    @classmethod
    def of(
        cls,
        ours: Outcomes,
        theirs: Outcomes,
        compared: np.ndarray,
        objective: type[Objective] = Classification,
        *,
        units: np.ndarray | None = None,
        alpha: float = 0.05,
    ) -> "Comparison":
        """Compare two models.

        Args:
            ours: The outcomes of the candidate.
            theirs: The outcomes of the champion on the same split.
            compared: Which samples count, bool `[samples]`.
            objective: The objective of both models.
            units: The unit of each sample, int `[samples]`; None if each sample is one.
            alpha: The level with which the p-value is compared.
        """
        gains = differences(ours, theirs, objective)[compared]
        units = None if units is None else units[compared]
        if units is not None and len(np.unique(units)) == len(units):
            units = None
        found = gains if units is None else sums_by_unit(gains, units)
        return cls(
            samples=len(gains),
            total=float(ours.values[compared].sum()),
            champion_total=float(theirs.values[compared].sum()),
            wins=int((found > 0).sum()),
            losses=int((found < 0).sum()),
            objective=objective,
            units=None if units is None else len(found),
            p=paired_p(found, alpha),
        )

    @property
    def value(self) -> float:
        """The candidate's mean of the selection metric over the samples."""
        return self.total / self.samples

    @property
    def champion_value(self) -> float:
        """The champion's mean of the selection metric over the samples."""
        return self.champion_total / self.samples

    @property
    def gain(self) -> float:
        """How much better the candidate's value is than the champion's."""
        return self.objective.signed(self.total - self.champion_total) / self.samples

    @property
    def p_value(self) -> float:
        """The probability of at least this gain if both models are equally good."""
        return sign_p(self.wins, self.losses) if self.p is None else self.p

    @property
    def is_exact(self) -> bool:
        """Whether the test counts wins and losses, so that its p-value may be of any size."""
        return self.objective.is_right_or_wrong and self.units is None

    def passes(self, rules: RegistryConfig) -> bool:
        """Return whether the candidate is better by as much, and as surely, as the rules ask.

        If both models are equally good, the champion stays, whatever the rules.
        """
        if not self.gain > 0:
            return False
        return self.gain >= rules.min_gain and self.p_value <= rules.alpha

    def wins_needed(self, rules: RegistryConfig) -> int | None:
        """Return how many wins would pass with this many losses, if each win is a whole unit.

        Returns:
            The number of wins; None if there are too few units.
        """
        most = (self.units or self.samples) - self.losses
        if most <= self.losses or not self._is_enough(most, rules):
            return None
        low, high = self.losses + 1, most
        while low < high:  # if a number of wins passes, more wins pass too
            middle = (low + high) // 2
            low, high = (low, middle) if self._is_enough(middle, rules) else (middle + 1, high)
        return low

    def _is_enough(self, wins: int, rules: RegistryConfig) -> bool:
        gain = (wins - self.losses) / self.samples
        return gain >= rules.min_gain and sign_p(wins, self.losses) <= rules.alpha

    def __str__(self) -> str:
        if self.units is not None:
            counts = (
                f"of {self.units} recordings or groups, this run is better on {self.wins} and the "
                f"champion on {self.losses}"
            )
        elif self.objective.is_right_or_wrong:
            counts = (
                f"{self.wins} that only this run has right, {self.losses} that only the champion "
                "has right"
            )
        else:
            counts = (
                f"{self.wins} on which this run is better, {self.losses} on which the champion is"
            )
        return (
            f"{self.objective.sample_metric} {self.value:.4f} on {self.samples} samples, where the "
            f"champion has {self.champion_value:.4f}: {counts}, p = {self.p_value:.3g}"
        )


def differences(ours: Outcomes, theirs: Outcomes, objective: type[Objective]) -> np.ndarray:
    """Return how much better our model is than the other on each sample, float64 `[samples]`.

    Two values that are both infinite differ by 0.
    """
    with np.errstate(invalid="ignore"):
        found = ours.values - theirs.values
    found = np.where(ours.values == theirs.values, 0.0, found)
    return found if objective.higher_is_better else -found


def sums_by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return the sum of the values of each unit, float64 `[units]`."""
    _, rows = np.unique(units, return_inverse=True)
    return np.bincount(rows, weights=values)
