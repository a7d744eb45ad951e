"""The learning rate as a pure function of the step."""

import math

from pipeline.config.training import TrainingConfig


def learning_rate(step: int, steps_per_epoch: int, config: TrainingConfig) -> float:
    """Return the learning rate of an optimizer step.

    It warms up, stays flat, then decays to 0 with a cosine, or in steps. Perceiver IO trains
    ImageNet with a flat part and a cosine, without warm-up (arXiv 2107.14795, appendix H); the
    Perceiver in steps (arXiv 2103.03206, appendix A).

    Args:
        step: The step, counted from 0.
        steps_per_epoch: The number of steps in an epoch.
        config: The configuration, with the learning rate, the epochs and the schedule.
    """
    warmup = config.schedule.warmup_epochs * steps_per_epoch
    flat = config.schedule.flat_epochs * steps_per_epoch
    total = config.epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.schedule.kind == "steps":
        passed = sum(epoch * steps_per_epoch <= step for epoch in config.schedule.step_epochs)
        return config.learning_rate * config.schedule.factor**passed
    if step < warmup + flat:
        return config.learning_rate
    progress = (step - warmup - flat) / max(1.0, total - warmup - flat)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
