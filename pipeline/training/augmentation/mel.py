"""Augment stored log-mel frames in training, with the same result at any world size."""

import torch
import torch.nn.functional as F

from pipeline.config.augment import asked
from pipeline.config.training import AugmentConfig
from pipeline.inputs.audio import MEL_FIELDS
from pipeline.media import AudioFormat
from pipeline.training.augmentation.draws import uniform_draws
from pipeline.training.augmentation.noise import white_noise

CURVE_KNOTS = 6
"""The number of random heights of a curve over the bands."""


def augment_mel(
    frames: torch.Tensor,
    mask: torch.Tensor,
    config: AugmentConfig,
    media: AudioFormat,
    *,
    seed: int,
    rank: int,
    global_batch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift recordings in time, bend their bands, add noise, and hide a span of time and bands.

    Hidden values become 0, the mean of a standardised recording. At most half of a recording's
    frames are hidden.

    Args:
        frames: float32 `[batch, frames, 1, num_mels]`, standardised.
        mask: bool `[batch, frames, 1]`, True where there is sound. It is shifted too.
        config: The configuration of the augmentation.
        media: The format of the recordings, with `mel`.
        seed: The seed of this step, equal on all ranks.
        rank: The rank, which says which part of the global batch this is.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        The frames and the mask; or the given tensors if the configuration changes nothing.
    """
    if not asked(config, MEL_FIELDS):
        return frames, mask
    assert media.mel is not None
    batch, length, _, num_mels = frames.shape
    device = frames.device
    per_second = media.sample_rate / media.mel.hop_length(media.sample_rate)
    knots = CURVE_KNOTS if config.band_gain else 0
    draws = uniform_draws(seed, 5 + knots, batch, rank, global_batch).to(device)
    shift = torch.round((2 * draws[0] - 1) * config.shift_seconds * per_second).long()
    position = torch.arange(length, device=device)
    source = position - shift[:, None]
    inside = (source >= 0) & (source < length)
    source = source.clamp(0, length - 1)
    kept = (mask[:, :, 0].gather(1, source) & inside).unsqueeze(-1)
    moved = frames.gather(1, source[:, :, None, None].expand_as(frames))
    if config.band_gain:
        moved = moved + _curves(draws[5:], num_mels)[:, None, None] * config.band_gain
    if config.noise:
        row, where = moved.flatten(1), kept.unsqueeze(-1).expand_as(moved).flatten(1)
        noise = white_noise(row, where, config.noise, seed, rank, global_batch)
        moved = moved + noise.reshape(moved.shape)
    first = kept[:, :, 0].int().argmax(dim=1)
    count = kept[:, :, 0].sum(dim=1)
    longest = (count // 2).clamp(max=round(config.mask_seconds * per_second))
    is_hidden = _within(position, first, count, longest, draws[1:3])[:, :, None, None]
    bands = torch.full_like(count, num_mels)
    widest = torch.full_like(count, config.mask_bands)
    band = torch.arange(num_mels, device=device)
    is_hidden = is_hidden | _within(band, first * 0, bands, widest, draws[3:])[:, None, None]
    return moved.masked_fill(is_hidden | ~kept.unsqueeze(-1), 0.0), kept


def _curves(draws: torch.Tensor, num_mels: int) -> torch.Tensor:
    """Return a smooth curve over the bands for each sample, float32 `[batch, num_mels]` in [-1, 1].

    Args:
        draws: The heights of evenly spaced knots, `[knots, batch]` in [0, 1). Between them the
            curve is linear.
        num_mels: The number of bands.
    """
    heights = (2 * draws - 1).T.unsqueeze(1)
    return F.interpolate(heights, num_mels, mode="linear", align_corners=True).squeeze(1)


def _within(
    position: torch.Tensor,
    first: torch.Tensor,
    count: torch.Tensor,
    longest: torch.Tensor,
    draws: torch.Tensor,
) -> torch.Tensor:
    """Return whether each position lies in a random span, bool `[batch, positions]`.

    Args:
        position: The positions, int64 `[positions]`.
        first: The first position that the span may cover, int64 `[batch]`.
        count: The number of positions that the span may cover, int64 `[batch]`.
        longest: The largest length of the span, int64 `[batch]`. The smallest is 0.
        draws: `[2, batch]` in [0, 1), for the length and the start of the span.
    """
    length = (draws[0] * (longest + 1)).long()
    start = first + (draws[1] * (count - length + 1)).long()
    return (position >= start[:, None]) & (position < (start + length)[:, None])
