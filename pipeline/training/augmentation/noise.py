"""White noise for training sounds, the same at any world size."""

import torch

from pipeline.training.augmentation.draws import step_seed, uniform_draws

NOISE = 14
"""Separates the random numbers of noise from those of the other changes of sounds."""


def white_noise(
    sound: torch.Tensor, mask: torch.Tensor, most: float, seed: int, rank: int, global_batch: int
) -> torch.Tensor:
    """Return noise of a random loudness for each recording, 0 where the mask is False.

    Log-mel frames are taken as one row of numbers for each recording.

    Each recording has its own random generator, so a rank draws only the noise of its own samples.

    Args:
        sound: float32 `[batch, samples]`.
        mask: bool `[batch, samples]`, True where there is sound.
        most: The largest root mean square of the noise, as a share of the recording's.
        seed: The seed of this step, equal on all ranks.
        rank: The rank.
        global_batch: The number of rows of all ranks together, without padding.
    """
    batch, length = sound.shape
    noise = torch.empty(batch, length)
    for number, row in enumerate(noise, start=rank * batch):
        row.normal_(generator=torch.Generator().manual_seed(step_seed(seed, NOISE, number)))
    draws = uniform_draws(step_seed(seed, NOISE), 1, batch, rank, global_batch)[0]
    count = mask.sum(dim=1).clamp(min=1)
    loudness = ((sound * mask).square().sum(dim=1) / count).sqrt()
    scale = most * draws.to(sound.device) * loudness
    return noise.to(sound.device) * scale[:, None] * mask
