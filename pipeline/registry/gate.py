"""Whether a model replaces the champion: a paired test on samples that neither has been trained on.

Both models answer for the same samples. Only those on which exactly one of them is right tell the
two apart; if both were equally good, each would win such a sample as often as the other, so the
number of wins is binomial with probability 1/2 (McNemar's test in its exact form, one-sided:
Psychometrika 12, 1947).
"""

from dataclasses import dataclass

import numpy as np

from pipeline.config.tree import RegistryConfig
from pipeline.registry.outcomes import Outcomes


@dataclass(frozen=True)
class Comparison:
    """A candidate and a champion on the same samples.

    Attributes:
        samples: how many were compared.
        correct, champion_correct: of these, how many each has right.
        wins: samples that only the candidate has right.
        losses: samples that only the champion has right.
    """

    samples: int
    correct: int
    champion_correct: int
    wins: int
    losses: int

    @classmethod
    def of(cls, ours: Outcomes, theirs: Outcomes, compared: np.ndarray) -> "Comparison":
        """Compare two models.

        Args:
            ours, theirs: of the candidate and of the champion, on the same split.
            compared: bool `[samples]`, the samples that count.
        """
        mine, its = ours.correct[compared], theirs.correct[compared]
        return cls(
            samples=len(mine),
            correct=int(mine.sum()),
            champion_correct=int(its.sum()),
            wins=int((mine & ~its).sum()),
            losses=int((its & ~mine).sum()),
        )

    @property
    def accuracy(self) -> float:
        """Of the candidate."""
        return self.correct / self.samples

    @property
    def champion_accuracy(self) -> float:
        """Of the champion."""
        return self.champion_correct / self.samples

    @property
    def gain(self) -> float:
        """What accuracy rises by."""
        return (self.wins - self.losses) / self.samples

    @property
    def p_value(self) -> float:
        """How likely so many wins, or more, are if both models are equally good."""
        return p_value(self.wins, self.losses)

    def passes(self, rules: RegistryConfig) -> bool:
        """Whether the candidate is better by as much, and as surely, as the rules ask."""
        return self.wins > self.losses and self._is_enough(self.wins, rules)

    def wins_needed(self, rules: RegistryConfig) -> int | None:
        """Wins that would pass beside these losses; None if the samples do not suffice for them."""
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
        return (
            f"accuracy {self.accuracy:.4f} on {self.samples} samples, where the champion has "
            f"{self.champion_accuracy:.4f}: {self.wins} that only this run has right, "
            f"{self.losses} that only the champion has right, p = {self.p_value:.3g}"
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
