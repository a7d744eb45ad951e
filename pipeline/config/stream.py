"""The section `training.stream`: recordings in parts, read with the latents carried over."""

from pydantic import Field

from pipeline.config.base import ConfigBase


class StreamConfig(ConfigBase):
    """Read the parts of each recording in order, and carry the latents from part to part.

    Attributes:
        parts_per_step: The number of parts that each row of the batch reads in one optimizer step.
            Gradients flow back through these parts and no further (truncated backpropagation
            through time). `training.batch_size` counts parts, so it is a multiple of this.
    """

    parts_per_step: int = Field(default=1, ge=1)
