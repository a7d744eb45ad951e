"""Random changes to stored log-mel frames in training, the same at any world size."""

import torch

from pipeline.config.augment import asked
from pipeline.config.training import AugmentConfig
from pipeline.inputs.audio import MEL_FIELDS
from pipeline.media import AudioFormat
from pipeline.training.augmentation.images import uniform_draws


def augment_mel(
    frames: torch.Tensor,
    mask: torch.Tensor,
    config: AugmentConfig,
    media: AudioFormat,
    *,
    seed: int,
    rank: int,
    world_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift recordings in time, and hide a stretch of time and some bands (SpecAugment).

    What is hidden becomes 0, the mean of a standardised recording; at most half of a recording's
    frames are.

    Args:
        frames: float32 `[batch, frames, 1, num_mels]`, standardised.
        mask: bool `[batch, frames, 1]`, True where there is sound; moves along.
        media: their format, with `mel`.
        seed: of this step; equal on all ranks.
        rank, world_size: which part of the global batch this is.

    Returns:
        The frames and the mask, both as they came where nothing is to change.
    """
    if not asked(config, MEL_FIELDS):
        return frames, mask
    assert media.mel is not None
    batch, length, _, num_mels = frames.shape
    device = frames.device
    per_second = media.sample_rate / media.mel.hop_length(media.sample_rate)
    draws = uniform_draws(seed, 5, batch, rank, world_size).to(device)
    shift = torch.round((2 * draws[0] - 1) * config.shift_seconds * per_second).long()
    place = torch.arange(length, device=device)
    source = place - shift[:, None]
    inside = (source >= 0) & (source < length)
    source = source.clamp(0, length - 1)
    kept = (mask[:, :, 0].gather(1, source) & inside).unsqueeze(-1)
    moved = frames.gather(1, source[:, :, None, None].expand_as(frames))
    first = kept[:, :, 0].int().argmax(dim=1)
    count = kept[:, :, 0].sum(dim=1)
    longest = (count // 2).clamp(max=round(config.mask_seconds * per_second))
    is_hidden = _within(place, first, count, longest, draws[1:3])[:, :, None, None]
    bands = torch.full_like(count, num_mels)
    widest = torch.full_like(count, config.mask_bands)
    band = torch.arange(num_mels, device=device)
    is_hidden = is_hidden | _within(band, first * 0, bands, widest, draws[3:])[:, None, None]
    return moved.masked_fill(is_hidden | ~kept.unsqueeze(-1), 0.0), kept


def _within(
    place: torch.Tensor,
    first: torch.Tensor,
    count: torch.Tensor,
    longest: torch.Tensor,
    draws: torch.Tensor,
) -> torch.Tensor:
    """Whether each place lies in a random span, bool `[batch, places]`.

    Args:
        place: int64 `[places]`.
        first, count: int64 `[batch]`: the span lies in those `count` places.
        longest: int64 `[batch]`: of the span; its length is 0 to that.
        draws: `[2, batch]` in [0, 1): of its length and of its start.
    """
    length = (draws[0] * (longest + 1)).long()
    start = first + (draws[1] * (count - length + 1)).long()
    return (place >= start[:, None]) & (place < (start + length)[:, None])
