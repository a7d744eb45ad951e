"""Augment recordings in training, as samples or as log-mel frames."""

import torch

from pipeline.config.training import AugmentConfig
from pipeline.media.audio.decode import AudioFormat
from pipeline.training.augmentation.images import augment_audio
from pipeline.training.augmentation.mel import augment_mel


def change_sound(
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    config: AugmentConfig,
    media: AudioFormat,
    **share: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Augment recordings, as `pipeline.training.augmentation.batch.change` describes."""
    if mask is None:
        return inputs, mask
    if media.mel is not None:
        return augment_mel(inputs, mask, config, media, **share)
    return augment_audio(inputs, mask, config, sample_rate=media.sample_rate, **share)
