"""What a study may cost: the limits of one trial, and the budget of all of them."""

from pydantic import Field

from pipeline.config.base import ConfigBase


class LimitsConfig(ConfigBase):
    """What a trial may cost. Settings beyond a limit are refused before they are trained.

    The search then draws others in their place. Null sets no limit.

    Attributes:
        flops: The most FLOPs of the forward pass of one sample.
        parameters: The most trained parameters.
        memory_gib: The most memory of a worker in training, in GiB, by the arithmetic of
            `perceiver plan`.
        latency_ms: The longest forward pass of one sample, in milliseconds. It is measured with an
            untrained model where the command runs: the median of several passes on one thread.
    """

    flops: float | None = Field(default=None, gt=0)
    parameters: float | None = Field(default=None, gt=0)
    memory_gib: float | None = Field(default=None, gt=0)
    latency_ms: float | None = Field(default=None, gt=0)


class BudgetConfig(ConfigBase):
    """What the trials of a study may cost together. Null sets no bound.

    When it is spent, the study ends with what it has. If it grows, a finished study continues.

    Attributes:
        flops: The FLOPs of all trainings: three times those of the forward pass (the backward pass
            takes two), for each sample. A trial begins only if it fits to its last epoch. What
            trials that are stopped early leave over goes to others.
        device_hours: The hours of the workers of all trials: on GPUs, GPU hours. What was spent is
            looked at after each epoch, so that running trials go on to the end of theirs.
    """

    flops: float | None = Field(default=None, gt=0)
    device_hours: float | None = Field(default=None, gt=0)
