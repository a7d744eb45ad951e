"""Which samples each rank reads at each step of an epoch."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from shards.errors import ShardError
from shards.order import EpochOrder, epoch_key
from shards.reader import ShardReader

PADDING = -1
"""Stands in a batch where there is no sample."""

REMOTE_WINDOW = 16
"""Shards that are shuffled together where the set is not local."""

Window: TypeAlias = int | Literal["auto"] | None
"""Shards shuffled together: a number, None for all, "auto" for what suits where the set lies."""


def resolve_window(window: Window, reader: ShardReader) -> int | None:
    """What "auto" means for `reader`: all shards where they are local, else `REMOTE_WINDOW`.

    Raises:
        ShardError: fewer than one shard.
    """
    if window == "auto":
        return None if reader.is_local else REMOTE_WINDOW
    if window is not None and (isinstance(window, bool | str) or window < 1):
        raise ShardError(f"window {window!r}: give at least 1 shard, or None for the whole split")
    return window


def epoch_order(
    reader: ShardReader, *, seed: int, epoch: int, shuffle: bool, window: Window
) -> EpochOrder:
    """The order of `reader`'s split in `epoch`.

    Raises:
        ShardError: as `resolve_window`.
    """
    resolved = resolve_window(window, reader)
    key = epoch_key(reader.shard_set.digest, reader.split, seed, epoch, resolved)
    return EpochOrder(reader.shard_sizes, key if shuffle else None, resolved)


def num_steps(num_samples: int, global_batch_size: int, *, drop_last: bool) -> int:
    """Global batches in `num_samples`: an incomplete last one is dropped or counts as one."""
    full, rest = divmod(num_samples, global_batch_size)
    return full if drop_last else full + bool(rest)


@dataclass(frozen=True)
class EpochPlan:
    """What one rank reads at each step of the rest of an epoch; see `epoch_positions`."""

    order: EpochOrder
    rank: int
    world_size: int
    batch_size: int
    start: int
    drop_last: bool

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size or self.batch_size < 1 or self.start < 0:
            raise ShardError(
                f"rank {self.rank} of {self.world_size}, batch size {self.batch_size}, start "
                f"{self.start}: ranks lie below the world size, batches are not empty, start is "
                "not negative"
            )

    def __len__(self) -> int:
        """Steps, as many on every rank."""
        left = max(self.order.num_samples - self.start, 0)
        return num_steps(left, self.world_size * self.batch_size, drop_last=self.drop_last)

    def __getitem__(self, step: int) -> np.ndarray:
        """Sample numbers, int64 [batch_size], `PADDING` where there are no more."""
        begin, end = self._bounds(step)
        batch = np.full(self.batch_size, PADDING, dtype=np.int64)
        if begin < end:
            batch[: end - begin] = self.order(np.arange(begin, end, dtype=np.int64))
        return batch

    def samples_after(self, step: int) -> int:
        """Samples of the epoch that all ranks together have had once `step` is done."""
        samples = self.start + (step + 1) * self.world_size * self.batch_size
        return min(samples, self.order.num_samples)

    def read_ahead(self, reader: ShardReader, step: int) -> None:
        """Lets a reader from afar fetch the shards of the window at `step`, and of the next."""
        if reader.is_local or self.order.window is None or not self.order.num_samples:
            return
        begin, end = self._bounds(step)
        first, last = self.order.window_at(begin), self.order.window_at(end - 1)
        later = [self.order.shards_in(window) for window in range(first + 1, last + 2)]
        reader.read_ahead(self.order.shards_in(first), [*itertools.chain(*later)])

    def _bounds(self, step: int) -> tuple[int, int]:
        """(first, one past last) position of this rank; equal or crossed where there is none."""
        begin = self.start + (step * self.world_size + self.rank) * self.batch_size
        return begin, min(begin + self.batch_size, self.order.num_samples)


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
    window: Window = "auto",
) -> Iterator[np.ndarray]:
    """The sample numbers that `rank` reads, one batch for each global step.

    The epoch's order is a pure function of (set digest, split, seed, epoch, window); a global batch
    is the next `world_size * batch_size` samples of it, and rank r has the r-th `batch_size` of
    these. So what is read at a step depends on the global batch size only, and a run resumes at
    another world size by keeping that and giving `start`. Every rank has the same number of steps.
    Where the set is not local and is read by windows, asking for a batch lets the reader fetch the
    shards of its window and the next.

    Args:
        reader: of the split.
        seed, epoch: choose the order.
        rank: of `world_size`.
        batch_size: samples a rank and step.
        start: samples of this epoch that all ranks together have consumed already.
        shuffle: false gives the order of the shards.
        drop_last: drop an incomplete last global batch, or fill it up with `PADDING`.
        window: shards that are shuffled together; None for all of them, as is the default where
            the set is local; else the default is `REMOTE_WINDOW`.

    Returns:
        Iterator over int64 [batch_size].

    Raises:
        ShardError: rank, batch size, start or window out of range.
    """
    order = epoch_order(reader, seed=seed, epoch=epoch, shuffle=shuffle, window=window)
    plan = EpochPlan(order, rank, world_size, batch_size, start, drop_last)
    return _batches(reader, plan)


def _batches(reader: ShardReader, plan: EpochPlan) -> Iterator[np.ndarray]:
    for step in range(len(plan)):
        plan.read_ahead(reader, step)
        yield plan[step]
