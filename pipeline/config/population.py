"""Population-based training (Jaderberg et al., arXiv 1711.09846), with trials that wait.

Ray Tune's own draws from global generators and keeps its state in the process, so that a killed
study would go on differently, and its changed values may leave the space. Here, all trials wait
for each other every few epochs. So the decisions depend only on the scores, the seed and the space.
"""

import math
from collections.abc import Sequence
from typing import Any

from pipeline.config.conditions import Space
from pipeline.config.scheduler import Member, Pace, Scheduler, Takeover
from pipeline.config.space import SpaceConfig

QUANTILE = 0.25
RESAMPLED = 0.25
FACTORS = (0.8, 1.2)
PERTURBED = (
    "training.learning_rate",
    "training.weight_decay",
    "training.label_smoothing",
    "training.gradient_clipping",
    "training.augment.",
)
"""The fields that may change during a training: weights, moments and order keep their shapes."""


class Population(Scheduler):
    """The worst quarter goes on from the weights of the best, with changed settings.

    Args:
        space: The values of each dotted field.
        every: The number of epochs after which trials wait for each other.
        pace: How long the trials are.
    """

    def __init__(self, space: Space, every: int, pace: Pace) -> None:
        self._space, self._every, self._pace = space, every, pace

    def stops(self, trial: int, epoch: int, samples: int, score: float) -> bool:
        """Return False: no trial is stopped."""
        return False

    def waits_after(self, epoch: int) -> int | None:
        """Return the next multiple of the number of epochs, if it comes before the end."""
        following = (epoch // self._every + 1) * self._every
        return following if following < self._pace.epochs else None

    def takeovers(self, epoch: int, members: Sequence[Member]) -> list[Takeover]:
        """Let the worst quarter, at least one of two trials, go on from the best quarter."""
        import numpy as np

        if len(members) < 2:
            return []
        # Of equal scores, the smaller number is the better one.
        ranked = sorted(members, key=lambda each: (-_score(each), each.trial))
        count = min(math.ceil(len(ranked) * QUANTILE), len(ranked) // 2)
        best, worst = ranked[:count], ranked[-count:]
        found = []
        for heir in sorted(worst, key=lambda each: each.trial):
            if _score(heir) >= _score(best[-1]):
                continue  # all scores are equal
            seeds = np.random.SeedSequence([self._pace.seed, epoch, heir.trial])
            random = np.random.RandomState(np.random.MT19937(seeds))
            donor = best[random.randint(len(best))]
            settings = {
                field: perturbed(self._space[field], value, random)
                for field, value in sorted(donor.settings.items())
            }
            found.append(Takeover(heir.trial, donor.trial, settings))
        return found


def perturbed(space: SpaceConfig, value: Any, random: Any) -> Any:
    """Return a value near another one, or, with probability 1/4, a new draw.

    Continuous numbers are multiplied by 0.8 or 1.2 and stay within their bounds. Other values
    become the one before or after them.

    Args:
        space: The values of the field.
        value: The other value.
        random: A `numpy.random.RandomState`.
    """
    if random.random_sample() < RESAMPLED:
        return space.at(random.random_sample())
    up = int(random.randint(2))
    if (levels := space.levels) is not None:
        index = next(n for n in range(levels) if space.level(n) == value)
        return space.level(min(max(index + (1 if up else -1), 0), levels - 1))
    low, high = space.bounds
    changed = value * FACTORS[up]
    if space.log_integer is not None:  # at least the next whole number
        changed = max(round(changed), value + 1) if up else min(round(changed), value - 1)
    return min(max(changed, low), high)


def _score(member: Member) -> float:
    return -math.inf if member.score is None else member.score


def check_perturbed(space: Space) -> None:
    """Check that every field may change during a training.

    Raises:
        ValueError: A field may not, or has a condition.
    """
    allowed = ", ".join(f"{each}*" if each.endswith(".") else each for each in PERTURBED)
    for path, values in space.items():
        if not path.startswith(PERTURBED):
            raise ValueError(
                f"space.{path}: scheduler 'pbt' copies weights between trials and changes their "
                f"settings as they train, so it searches {allowed} only"
            )
        if values.when:
            raise ValueError(f"space.{path}.when: scheduler 'pbt' takes no conditions")
