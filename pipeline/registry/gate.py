"""Decide whether a model replaces the champion: a paired test on samples new to both.

Both models answer for the same samples. Only the samples on which one model is better count. If
both models were equally good, each would win half of these samples on average, and the number of
wins would be binomial with probability 1/2. This is the one-sided sign test. For classifiers, whose
answers are right or wrong, it is McNemar's test in its exact form (Psychometrika 12, 1947).
"""

from dataclasses import dataclass

import numpy as np

from pipeline.config.tree import RegistryConfig
from pipeline.registry.outcomes import Outcomes
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
        wins: The number of samples on which the candidate is better.
        losses: The number of samples on which the champion is better.
        objective: The objective of both models.
    """

    samples: int
    total: float
    champion_total: float
    wins: int
    losses: int
    objective: type[Objective] = Classification

    @classmethod
    def of(
        cls,
        ours: Outcomes,
        theirs: Outcomes,
        compared: np.ndarray,
        objective: type[Objective] = Classification,
    ) -> "Comparison":
        """Compare two models.

        Args:
            ours: The outcomes of the candidate.
            theirs: The outcomes of the champion on the same split.
            compared: Which samples count, bool `[samples]`.
            objective: The objective of both models.
        """
        mine, its = ours.values[compared], theirs.values[compared]
        better, worse = (mine > its), (mine < its)
        if not objective.higher_is_better:
            better, worse = worse, better
        return cls(
            samples=len(mine),
            total=float(mine.sum()),
            champion_total=float(its.sum()),
            wins=int(better.sum()),
            losses=int(worse.sum()),
            objective=objective,
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
        """The probability of at least this many wins if both models are equally good."""
        return p_value(self.wins, self.losses)

    def passes(self, rules: RegistryConfig) -> bool:
        """Return whether the candidate is better by as much, and as surely, as the rules ask.

        If both models are equally good, the champion stays, whatever the rules.
        """
        if self.wins <= self.losses or self.gain <= 0:
            return False
        return self.gain >= rules.min_gain and self.p_value <= rules.alpha

    def wins_needed(self, rules: RegistryConfig) -> int | None:
        """Return how many wins would pass with this many losses, if each win is a whole sample.

        Returns:
            The number of wins; None if there are too few samples.
        """
        most = self.samples - self.losses
        if most <= self.losses or not self._is_enough(most, rules):
            return None
        low, high = self.losses + 1, most
        while low < high:  # if a number of wins passes, more wins pass too
            middle = (low + high) // 2
            low, high = (low, middle) if self._is_enough(middle, rules) else (middle + 1, high)
        return low

    def _is_enough(self, wins: int, rules: RegistryConfig) -> bool:
        gain = (wins - self.losses) / self.samples
        return gain >= rules.min_gain and p_value(wins, self.losses) <= rules.alpha

    def __str__(self) -> str:
        counts = (
            f"{self.wins} that only this run has right, {self.losses} that only the champion has "
            "right"
            if self.objective.is_right_or_wrong
            else f"{self.wins} on which this run is better, {self.losses} on which the champion is"
        )
        return (
            f"{self.objective.sample_metric} {self.value:.4f} on {self.samples} samples, where the "
            f"champion has {self.champion_value:.4f}: {counts}, p = {self.p_value:.3g}"
        )


def p_value(wins: int, losses: int) -> float:
    """Return the p-value of the one-sided exact sign test.

    It is the probability of at least `wins` wins out of `wins + losses`, each with probability 1/2.
    """
    from scipy.stats import binomtest

    if wins + losses == 0:
        return 1.0
    return float(binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue)


def samples_needed(rules: RegistryConfig) -> int:
    """Return the smallest number of samples with which a candidate that wins all of them passes."""
    needed = 1
    while p_value(needed, 0) > rules.alpha:
        needed += 1
    return needed
