"""Random numbers of augmentation: a pure function of the seed, on any number of workers."""

import hashlib

import torch


def step_seed(*parts: int) -> int:
    """Return a seed for a random generator, from integers such as (seed, epoch, step)."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


def uniform_draws(seed: int, count: int, batch: int, rank: int, global_batch: int) -> torch.Tensor:
    """Return uniform numbers `[count, batch]` for this rank's part of the global batch.

    Args:
        seed: The seed, equal on all ranks.
        count: How many numbers each sample gets.
        batch: The number of samples on each rank.
        rank: The rank.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        float32 `[count, batch]` in [0, 1).
    """
    generator = torch.Generator().manual_seed(seed)
    return own_rows(torch.rand(count, global_batch, generator=generator).T, batch, rank).T


def own_rows(everyone: torch.Tensor, batch: int, rank: int) -> torch.Tensor:
    """Return this rank's rows of numbers that were drawn for all ranks.

    Args:
        everyone: `[global_batch, …]`.
        batch: The number of rows on each rank.
        rank: The rank. The last ranks may have padding, which gets zeros.

    Returns:
        `[batch, …]`.
    """
    own = everyone[rank * batch : (rank + 1) * batch]
    if len(own) == batch:
        return own
    return torch.cat([own, own.new_zeros(batch - len(own), *own.shape[1:])])


def sample_uniforms(seed: int, count: int, batch: int, rank: int) -> torch.Tensor:
    """Return uniform numbers for this rank's samples, each from a generator of its own.

    Use this instead of `uniform_draws` for many numbers a sample: a rank draws only its own part.

    Args:
        seed: The seed, equal on all ranks.
        count: How many numbers each sample gets.
        batch: The number of samples on each rank.
        rank: The rank.

    Returns:
        float32 `[batch, count]` in [0, 1).
    """
    rows = torch.empty(batch, count)
    for number, row in enumerate(rows, start=rank * batch):
        row.uniform_(generator=torch.Generator().manual_seed(step_seed(seed, number)))
    return rows
