"""The section `training.early_stopping`: end a training whose score no longer improves."""

from collections.abc import Sequence

from pydantic import Field

from pipeline.config.base import ConfigBase


class EarlyStoppingConfig(ConfigBase):
    """End a training after epochs without an improvement of the objective's own metric.

    Attributes:
        patience: A training ends after this many epochs in a row without an improvement. A trial of
            a study does, too.
        min_delta: An improvement is a change of the metric, in the direction that is better, by
            more than this.
    """

    patience: int = Field(ge=1)
    min_delta: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def stops(self, scores: Sequence[float]) -> bool:
        """Return whether a training ends after its last epoch.

        Args:
            scores: The score of every epoch so far, in order. A higher score is better.
        """
        return epochs_without_improvement(scores, self.min_delta) >= self.patience


def epochs_without_improvement(scores: Sequence[float], min_delta: float) -> int:
    """Return the number of epochs since the last improvement. The first epoch is one.

    Args:
        scores: The score of every epoch so far, in order. A higher score is better.
        min_delta: An improvement is a score above the last improvement's by more than this.
    """
    best, epochs = None, 0
    for score in scores:
        if best is None or score > best + min_delta:
            best, epochs = score, 0
        else:
            epochs += 1
    return epochs
