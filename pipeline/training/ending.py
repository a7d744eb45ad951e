"""When a training has ended: after its last epoch, or earlier if its score no longer improves."""

from pipeline.config.training import TrainingConfig
from pipeline.training.checkpoint_files import TrainState


def stopped_early(training: TrainingConfig, state: TrainState) -> int | None:
    """Return the epoch, counted from 1, after which a training stopped early; None if it did not.

    It depends only on the scores in the state. So a resumed training knows how many epochs without
    an improvement came before.

    Args:
        training: The configuration of the training.
        state: The state after an epoch, or within one.
    """
    rule = training.early_stopping
    stopped = rule is not None and state.epoch < training.epochs and rule.stops(state.scores)
    return state.epoch if stopped else None


def has_ended(training: TrainingConfig, state: TrainState) -> bool:
    """Return whether a training has reached its last epoch or has stopped early."""
    return state.epoch >= training.epochs or stopped_early(training, state) is not None
