"""The time that failures cost a training, from the time between them and between checkpoints.

Failures are taken to come at random, independent of each other, and without a notice: the time
between two has an exponential distribution. After each, the training starts again from the last
checkpoint that was committed. The formula is that of Daly, "A higher order estimate of the optimum
checkpoint interval" (2006), equation 13, with one addition: checkpoints are written while the
training goes on, so one counts only some time after it was taken.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Failures:
    """What failures and checkpoints take, in seconds.

    Attributes:
        between: The mean time between two failures of the training, of any of its workers.
        restart: From a failure to the first step after it.
        blocked: The time for which a checkpoint stops the steps.
        commit: From the moment when the training goes on until the checkpoint counts.
    """

    between: float
    restart: float
    blocked: float
    commit: float

    def expected_seconds(self, work: float, interval: float) -> float:
        """Return the expected time of a training.

        A segment is the work between two checkpoints, and the time for which one stops the steps.
        Between two failures `exp(-(restart + commit) / between) / (exp(segment / between) - 1)`
        segments are committed on average.

        Args:
            work: The time of its steps alone, in seconds.
            interval: The time of the steps between two checkpoints, in seconds.

        Returns:
            Seconds; infinity if practically no segment is ever committed.
        """
        waits = (self.restart + self.commit) / self.between
        segment = (interval + self.blocked) / self.between
        if waits + segment > math.log(1e9):
            return math.inf
        return work / interval * self.between * math.exp(waits) * math.expm1(segment)

    def lost_share(self, interval: float) -> float:
        """Return the share of the expected time that is not spent on steps that count, 0 to 1."""
        return 1 - 1 / self.expected_seconds(1.0, interval)

    def best_interval(self) -> float:
        """Return the interval with the least expected time, in seconds.

        The derivative of `expected_seconds` is 0 where `(x - 1) exp(x - 1) = -exp(-1 - blocked /
        between)`, `x = interval / between`. For short `blocked` this is about
        `sqrt(2 * blocked * between)` (Young 1974).
        """
        from scipy.special import lambertw

        product = -math.exp(-1 - self.blocked / self.between)
        return float(self.between * (1 + lambertw(product).real))
