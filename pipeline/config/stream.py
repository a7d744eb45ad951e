"""The section `training.stream`: recordings in parts, read with the latents carried over."""

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.config.base import ConfigBase
from pipeline.media.registered import modality_of

if TYPE_CHECKING:
    from pipeline.config.tree import Config

CUTTING = "data.audio.cut: all, data.text.cut: all or data.video.clips: all"


class StreamConfig(ConfigBase):
    """Read the parts of each recording in order, and carry the latents from part to part.

    Attributes:
        parts_per_step: The number of parts that each row of the batch reads in one optimizer step.
            Gradients flow back through these parts and no further (truncated backpropagation
            through time). `training.batch_size` counts parts, so it is a multiple of this.
    """

    parts_per_step: int = Field(default=1, ge=1)


def check_stream(config: "Config") -> None:
    """Refuse a configuration with `training.stream` that cannot be trained.

    Raises:
        ValueError: The text names the fields that do not fit.
    """
    training, objective = config.training, config.trained_for
    if training.stream is None:
        return
    if objective is None or not objective.reads_streams:
        kind = objective.kind if objective else None
        raise ValueError(
            f"training.stream is for the objectives 'classify' and 'regress'; objective.kind is "
            f"{kind!r}"
        )
    formats = config.data.formats
    if len(formats) > 1:
        raise ValueError(f"training.stream reads one modality; data has {', '.join(formats)}")
    for name, fmt in formats.items():
        if not modality_of(fmt).cuts(fmt):
            raise ValueError(
                f"training.stream reads recordings that are cut into parts, and data.{name} does "
                f"not cut its files; give {CUTTING}"
            )
    if training.augment.mixup or training.augment.cutmix:
        raise ValueError(
            "training.augment.mixup and cutmix blend samples of two recordings, which "
            "training.stream reads apart; leave them out"
        )
    if training.compile:
        raise ValueError("training.compile does not take training.stream; leave one of them out")
    config.micro_batch_size(max(1, config.cluster.num_workers))
