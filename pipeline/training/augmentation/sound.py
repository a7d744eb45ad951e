"""Augment recordings in training, as samples or as log-mel frames."""

import torch

from pipeline.config.augment import asked
from pipeline.config.training import AugmentConfig
from pipeline.inputs.audio import SOUND_FIELDS
from pipeline.media.audio.decode import AudioFormat
from pipeline.training.augmentation.draws import uniform_draws
from pipeline.training.augmentation.mel import augment_mel
from pipeline.training.augmentation.noise import white_noise


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


def augment_audio(
    sound: torch.Tensor,
    mask: torch.Tensor,
    config: AugmentConfig,
    *,
    sample_rate: int,
    seed: int,
    rank: int,
    global_batch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift recordings in time, change their loudness, and add noise.

    Args:
        sound: int16 `[batch, samples]`.
        mask: bool `[batch, samples]`, True where there is sound. It is shifted too.
        config: The configuration of the augmentation.
        sample_rate: The sample rate in hertz.
        seed: The seed of this step, equal on all ranks.
        rank: The rank, which says which part of the global batch this is.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        float32 `[batch, samples]` in [-1, 1] and the mask; or the given tensors if the
            configuration changes nothing.
    """
    if not asked(config, SOUND_FIELDS):
        return sound, mask
    batch, length = sound.shape
    draws = uniform_draws(seed, 2, batch, rank, global_batch)
    shift = torch.round((2 * draws[0] - 1) * config.shift_seconds * sample_rate).long()
    gain = 10 ** ((2 * draws[1] - 1) * config.gain_db / 20)
    source = torch.arange(length)[None, :] - shift[:, None]
    inside = ((source >= 0) & (source < length)).to(sound.device)
    source = source.clamp(0, length - 1).to(sound.device)
    moved = sound.gather(1, source).float() / 32768 * gain[:, None].to(sound.device)
    moved, kept = moved * inside, mask.gather(1, source) & inside
    if config.noise:
        moved = moved + white_noise(moved, kept, config.noise, seed, rank, global_batch)
    return moved.clamp(-1, 1), kept
