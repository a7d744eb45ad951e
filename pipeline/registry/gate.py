"""Whether a model replaces the champion: a paired test on samples that neither has been trained on.

Both models answer for the same samples. Only those on which one of them is better tell the two
apart; if both were equally good, each would win such a sample as often as the other, so the number
of wins is binomial with probability 1/2 (the sign test, one-sided; of classifiers, where an answer
is right or wrong, it is McNemar's test in its exact form: Psychometrika 12, 1947).
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
        samples: how many were compared.
        total, champion_total: sums over these of the objective's selection: of classifiers, how
            many each has right.
        wins: samples on which the candidate is better.
        losses: samples on which the champion is better.
        objective: of both.
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
            ours, theirs: of the candidate and of the champion, on the same split.
            compared: bool `[samples]`, the samples that count.
            objective: of both.
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
        """Mean of the objective's selection over the samples: the candidate's."""
        return self.total / self.samples

    @property
    def champion_value(self) -> float:
        """The champion's."""
        return self.champion_total / self.samples

    @property
    def gain(self) -> float:
        """How much better the candidate's value is."""
        return self.objective.signed(self.total - self.champion_total) / self.samples

    @property
    def p_value(self) -> float:
        """How likely so many wins, or more, are if both models are equally good."""
        return p_value(self.wins, self.losses)

    def passes(self, rules: RegistryConfig) -> bool:
        """Whether the candidate is better by as much, and as surely, as the rules ask.

        Of two that are equally good the champion stays, whatever the rules.
        """
        if self.wins <= self.losses or self.gain <= 0:
            return False
        return self.gain >= rules.min_gain and self.p_value <= rules.alpha

    def wins_needed(self, rules: RegistryConfig) -> int | None:
        """Wins that would pass beside these losses, where each is a whole sample.

        Returns:
            None if the samples do not suffice for them.
        """
        most = self.samples - self.losses
        if most <= self.losses or not self._is_enough(most, rules):
            return None
        low, high = self.losses + 1, most
        while low < high:  # more wins never fail where fewer pass
            middle = (low + high) // 2
            low, high = (low, middle) if self._is_enough(middle, rules) else (middle + 1, high)
        return low

    def _is_enough(self, wins: int, rules: RegistryConfig) -> bool:
        gain = (wins - self.losses) / self.samples
        return gain >= rules.min_gain and p_value(wins, self.losses) <= rules.alpha

    def __str__(self) -> str:
        told = (
            f"{self.wins} that only this run has right, {self.losses} that only the champion has "
            "right"
            if self.objective.is_right_or_wrong
            else f"{self.wins} on which this run is better, {self.losses} on which the champion is"
        )
        return (
            f"{self.objective.selection} {self.value:.4f} on {self.samples} samples, where the "
            f"champion has {self.champion_value:.4f}: {told}, p = {self.p_value:.3g}"
        )


def p_value(wins: int, losses: int) -> float:
    """The one-sided exact sign test's: of as many wins or more among all, each with chance 1/2."""
    from scipy.stats import binomtest

    if wins + losses == 0:
        return 1.0
    return float(binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue)


def samples_needed(rules: RegistryConfig) -> int:
    """The fewest samples that can show anything: if the candidate wins all, it passes."""
    needed = 1
    while p_value(needed, 0) > rules.alpha:
        needed += 1
    return needed
