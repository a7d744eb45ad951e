"""Which samples each rank reads at each step of an epoch."""

from collections.abc import Iterator

import numpy as np

from shards.errors import ShardError
from shards.order import Permutation, epoch_key
from shards.reader import ShardReader

PADDING = -1
"""Stands in a batch where there is no sample."""


def num_steps(num_samples: int, global_batch_size: int, *, drop_last: bool) -> int:
    """Global batches in `num_samples`: an incomplete last one is dropped or counts as one."""
    full, rest = divmod(num_samples, global_batch_size)
    return full if drop_last else full + bool(rest)


def epoch_positions(
    reader: ShardReader,
    *,
    seed: int,
    epoch: int,
    rank: int,
    world_size: int,
    batch_size: int,
    start: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
) -> Iterator[np.ndarray]:
    """The sample numbers that `rank` reads, one batch for each global step.

    The epoch's order is a pure function of (set digest, split, seed, epoch); a global batch is the
    next `world_size * batch_size` samples of it, and rank r has the r-th `batch_size` of these. So
    what is read at a step depends on the global batch size only, and a run resumes at another
    world size by keeping that and giving `start`. Every rank has the same number of steps.

    Args:
        reader: of the split.
        seed, epoch: choose the order.
        rank: of `world_size`.
        batch_size: samples a rank and step.
        start: samples of this epoch that all ranks together have consumed already.
        shuffle: false gives the order of the shards.
        drop_last: drop an incomplete last global batch, or fill it up with `PADDING`.

    Returns:
        Iterator over int64 [batch_size].

    Raises:
        ShardError: rank, batch size or start out of range.
    """
    if not 0 <= rank < world_size or batch_size < 1 or start < 0:
        raise ShardError(
            f"rank {rank} of {world_size}, batch size {batch_size}, start {start}: "
            "ranks lie below the world size, batches are not empty, start is not negative"
        )
    num_samples = len(reader)
    order = None
    if shuffle:
        key = epoch_key(reader.shard_set.digest, reader.split, seed, epoch)
        order = Permutation(num_samples, key)
    global_batch_size = world_size * batch_size
    steps = num_steps(max(num_samples - start, 0), global_batch_size, drop_last=drop_last)
    first = start + rank * batch_size
    return (
        _batch(order, np.arange(begin, begin + batch_size), num_samples)
        for begin in range(first, first + steps * global_batch_size, global_batch_size)
    )


def _batch(order: Permutation | None, positions: np.ndarray, num_samples: int) -> np.ndarray:
    real = positions[positions < num_samples]
    batch = np.full(len(positions), PADDING, dtype=np.int64)
    batch[: len(real)] = order(real) if order else real
    return batch
