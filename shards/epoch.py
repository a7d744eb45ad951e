"""Which samples each rank reads at each step of an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from shards.balanced_order import BalancedOrder
from shards.errors import ShardError
from shards.lanes import LaneOrder
from shards.node_order import NodeOrder
from shards.order import EpochOrder, epoch_key
from shards.reader import ShardReader

PADDING = -1
"""The sample number of an empty row in a batch."""

_ORDERED_AT_ONCE = 1024
"""The positions whose samples are computed together."""

REMOTE_WINDOW = 16
"""The default window, in shards, for a set that is not local."""

Window: TypeAlias = int | Literal["auto"] | None
"""The shards shuffled together: a number, None for all, or "auto" (see `resolve_window`)."""


def resolve_window(window: Window, reader: ShardReader) -> int | None:
    """Resolve "auto": all shards (None) if the set is local, else `REMOTE_WINDOW`.

    Raises:
        ShardError: The window is not at least one shard.
    """
    if window == "auto":
        return None if reader.is_local else REMOTE_WINDOW
    if window is not None and (isinstance(window, bool | str) or window < 1):
        raise ShardError(f"window {window!r}: give at least 1 shard, or None for the whole split")
    return window


def check_nodes(nodes: int, balance: float) -> None:
    """Raise ShardError unless `nodes` is at least 1, and 1 if classes are balanced."""
    if isinstance(nodes, bool) or nodes < 1:
        raise ShardError(f"nodes {nodes!r}: give at least 1")
    if nodes > 1 and balance:
        raise ShardError(
            f"nodes {nodes} and balance {balance!r}: classes are drawn from the whole set; give "
            "one of them"
        )


def check_balance(balance: float, *, shuffle: bool) -> None:
    """Raise ShardError unless `balance` is from 0 to 1, and 0 without a shuffle."""
    if not 0 <= balance <= 1:
        raise ShardError(f"balance {balance!r}: give a number from 0 to 1")
    if balance and not shuffle:
        raise ShardError(f"balance {balance!r}: samples are not shuffled; give 0, or shuffle them")


def epoch_order(
    reader: ShardReader,
    *,
    seed: int,
    epoch: int,
    shuffle: bool,
    window: Window,
    balance: float = 0.0,
    nodes: int = 1,
) -> EpochOrder:
    """Return the order of `reader`'s split in `epoch`.

    Args:
        reader: The reader of the split.
        seed: The seed of the order.
        epoch: The epoch, which also selects the order.
        shuffle: If false, the order is that of the shards.
        window: The number of shards shuffled together, as in `epoch_positions`.
        balance: How evenly classes are drawn, from 0 to 1, as in `BalancedOrder`; 0 draws each
            sample once. Above 0, the indexes of all shards of the split are read first.
        nodes: The parts of the set that each global batch is taken from, as in `NodeOrder`.

    Raises:
        ShardError: See `resolve_window`, `check_nodes` and `check_balance`; or a sample has no
            class, or an index cannot be read.
    """
    check_balance(balance, shuffle=shuffle)
    check_nodes(nodes, balance)
    resolved = resolve_window(window, reader)
    key = epoch_key(reader.shard_set.digest, reader.split, seed, epoch, resolved, balance, nodes)
    if nodes > 1:
        return NodeOrder(reader.shard_sizes, key if shuffle else None, resolved, nodes)
    if balance:
        return BalancedOrder(reader.shard_sizes, reader.targets(), key, resolved, balance)
    return EpochOrder(reader.shard_sizes, key if shuffle else None, resolved)


def num_steps(num_samples: int, global_batch_size: int, *, drop_last: bool) -> int:
    """Return the number of global batches in `num_samples` samples.

    Args:
        num_samples: The number of samples.
        global_batch_size: The samples of a global batch.
        drop_last: If true, an incomplete last batch does not count.
    """
    full, rest = divmod(num_samples, global_batch_size)
    return full if drop_last else full + bool(rest)


@dataclass(frozen=True)
class EpochPlan:
    """What one rank reads at each remaining step of an epoch; see `epoch_positions`.

    A global batch has `global_batch` samples, by default `world_size * batch_size`. If it has
    fewer, the last ranks have empty rows.
    """

    order: EpochOrder | LaneOrder
    rank: int
    world_size: int
    batch_size: int
    start: int
    drop_last: bool
    global_batch: int | None = None
    _numbers: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size or self.batch_size < 1 or self.start < 0:
            raise ShardError(
                f"rank {self.rank} of {self.world_size}, batch size {self.batch_size}, start "
                f"{self.start}: ranks lie below the world size, batches are not empty, start is "
                "not negative"
            )
        if not 0 < self._step_size <= self.world_size * self.batch_size:
            raise ShardError(
                f"global batch of {self._step_size}: {self.world_size} ranks with batches of "
                f"{self.batch_size} hold at most {self.world_size * self.batch_size} samples"
            )
        nodes = self.order.nodes
        if self._step_size % nodes or self.start % nodes:
            raise ShardError(
                f"nodes {nodes}: a global batch of {self._step_size} samples, after {self.start} "
                "samples of the epoch; both must be multiples of the nodes"
            )

    @property
    def _step_size(self) -> int:
        whole = self.world_size * self.batch_size
        return whole if self.global_batch is None else self.global_batch

    def __len__(self) -> int:
        """Return the number of steps, which is the same on every rank."""
        left = max(self.order.num_samples - self.start, 0)
        return num_steps(left, self._step_size, drop_last=self.drop_last)

    def __getitem__(self, step: int) -> np.ndarray:
        """Return sample numbers, int64 [batch_size], with `PADDING` where there is no sample."""
        if step not in self._numbers:
            # The order of few samples costs as much as that of many, so several steps are computed.
            count = max(1, _ORDERED_AT_ONCE // self.batch_size)
            positions = [self._positions(each) for each in range(step, step + count)]
            numbers = self.order(np.concatenate(positions))
            ends = np.cumsum([len(own) for own in positions])
            parts = np.split(numbers, ends[:-1])
            self._numbers.clear()
            self._numbers.update(zip(range(step, step + count), parts, strict=True))
        own = self._numbers[step]
        batch = np.full(self.batch_size, PADDING, dtype=np.int64)
        batch[: len(own)] = own
        return batch

    def samples_after(self, step: int) -> int:
        """Return how many samples of the epoch all ranks together have read after `step`."""
        samples = self.start + (step + 1) * self._step_size
        return min(samples, self.order.num_samples)

    def read_ahead(self, reader: ShardReader, step: int) -> None:
        """Let a remote reader fetch the shards of the window at `step` and of the next window."""
        if isinstance(self.order, LaneOrder):  # of local sets only
            return
        if reader.is_local or self.order.window is None or not self.order.num_samples:
            return
        positions = self._positions(step)
        if len(positions):
            reader.read_ahead(*self.order.shards_at(positions))

    def _positions(self, step: int) -> np.ndarray:
        """Return the positions of this rank's rows of a step, int64 [rows].

        With several nodes, the rows of a whole step are grouped by the part of the set that they
        are taken from (`NodeOrder`), so that a rank reads few parts.
        """
        begin, end = self._bounds(step)
        rows, nodes = np.arange(begin, max(begin, end), dtype=np.int64), self.order.nodes
        first = self.start + step * self._step_size
        if nodes == 1 or first + self._step_size > self.order.num_samples:
            return rows
        part, turn = np.divmod(rows - first, self._step_size // nodes)
        return first + turn * nodes + part

    def _bounds(self, step: int) -> tuple[int, int]:
        """Return this rank's range [begin, end) of positions; begin >= end means it is empty."""
        first = self.start + step * self._step_size
        begin = first + self.rank * self.batch_size
        return begin, min(begin + self.batch_size, first + self._step_size, self.order.num_samples)


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
    balance: float = 0.0,
    global_batch: int | None = None,
    nodes: int = 1,
) -> Iterator[np.ndarray]:
    """Return the sample numbers that `rank` reads, one batch for each global step.

    The order of an epoch is a pure function of (set digest, split, seed, epoch, window, balance,
    nodes). A global batch is the next `world_size * batch_size` samples of this order, and rank r
    reads the r-th `batch_size` samples of it, grouped by node if there are several. So the samples
    of a step depend only on the global batch size. To resume at another world size, keep the global
    batch size and give `start`. Every rank has the same number of steps. If the set is remote and
    has a window, each request for a batch lets the reader fetch the shards of the current and the
    next window.

    Args:
        reader: The reader of the split.
        seed: The seed of the order.
        epoch: The epoch, which also selects the order.
        rank: The rank of this process, below `world_size`.
        world_size: The number of ranks.
        batch_size: The samples per rank and step.
        start: The samples of this epoch that all ranks together have consumed already.
        shuffle: If false, the order is that of the shards.
        drop_last: If true, an incomplete last global batch is dropped; else `PADDING` fills it.
        window: The number of shards shuffled together, None for all of them. "auto" means all if
            the set is local, else `REMOTE_WINDOW`.
        balance: How evenly classes are drawn, as in `epoch_order`.
        global_batch: The samples of a global batch, if they are fewer than `world_size *
            batch_size`. The last ranks then have empty rows in every batch.
        nodes: The parts of the set that each global batch is taken from, as in `NodeOrder`. It
            divides the global batch and `start`.

    Returns:
        An iterator over int64 [batch_size].

    Raises:
        ShardError: The rank, batch size, start, window, balance or nodes is out of range; see also
            `epoch_order`.
    """
    order = epoch_order(
        reader,
        seed=seed,
        epoch=epoch,
        shuffle=shuffle,
        window=window,
        balance=balance,
        nodes=nodes,
    )
    plan = EpochPlan(order, rank, world_size, batch_size, start, drop_last, global_batch)
    return _batches(reader, plan)


def _batches(reader: ShardReader, plan: EpochPlan) -> Iterator[np.ndarray]:
    for step in range(len(plan)):
        plan.read_ahead(reader, step)
        yield plan[step]
