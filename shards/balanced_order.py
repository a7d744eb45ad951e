"""The order of an epoch that draws rare classes more often than their samples are."""

import numpy as np

from shards.errors import ShardError
from shards.order import MAX_WINDOWS_IN_USE, EpochOrder, Permutation, check_within, subkey

_WEIGHT_UNIT = 1 << 20
"""Weights of classes are integers in this unit, so that every machine draws the same samples."""


def class_draws(counts: np.ndarray, balance: float) -> np.ndarray:
    """Return how often each class is drawn in an epoch of as many draws as there are samples.

    A sample is drawn in proportion to `count ** -balance`, where `count` is the number of samples
    of its class.

    Args:
        counts: The samples of each class, int64 [classes].
        balance: From 0 (each class as often as it has samples) to 1 (each class equally often).

    Returns:
        int64 [classes]. The sum is that of `counts`. Each value is its exact share, rounded up or
        down.
    """
    total = int(counts.sum())
    sizes: list[int] = counts.tolist()
    weights = [round(size ** (1 - balance) * _WEIGHT_UNIT) if size else 0 for size in sizes]
    whole = max(1, sum(weights))
    draws = [total * weight // whole for weight in weights]
    rests = [total * weight % whole for weight in weights]
    by_rest = sorted(range(len(weights)), key=lambda number: -rests[number])
    for number in by_rest[: total - sum(draws)]:
        draws[number] += 1
    return np.array(draws, dtype=np.int64)


class BalancedOrder(EpochOrder):
    """An order in which classes are drawn by `class_draws`, with as many draws as samples.

    A class that is drawn more often than it has samples gives each of them equally often, to within
    one. A class that is drawn less often gives some of its samples, none of them twice. Which ones
    is another choice in each epoch.

    With a window, the shards are permuted and cut into windows as in `EpochOrder`. Each class is
    drawn from the windows in proportion to its samples there. So each shard is still read within
    one window only, and the windows have different numbers of draws. Memory is O(samples).

    Args:
        shard_sizes: The samples of each shard, int64 [shards].
        targets: The class of each sample, integers [samples], in the order of the shards.
        key: The key from `epoch_key`.
        window: The number of shards that are read together, at least 1; None for all.
        balance: As in `class_draws`.

    Raises:
        ShardError: A sample has no class.
    """

    def __init__(
        self,
        shard_sizes: np.ndarray,
        targets: np.ndarray,
        key: bytes,
        window: int | None,
        balance: float,
    ) -> None:
        super().__init__(shard_sizes, key, window)
        without = int((targets < 0).sum())
        if without:
            raise ShardError(
                f"{without} of {len(targets)} samples have no class, so classes cannot be drawn by "
                "balance; give every sample a class, or draw without balance"
            )
        self._targets = targets
        self._starts = np.cumsum(shard_sizes, dtype=np.int64) - shard_sizes
        self._sizes = shard_sizes
        if window is None:
            self._shards = np.arange(self.num_shards, dtype=np.int64)
        self._window_draws = self._divided(balance)  # [windows, classes]
        self._window_ends = np.cumsum(self._window_draws.sum(axis=1), dtype=np.int64)
        self._drawn: dict[int, tuple[np.ndarray, Permutation]] = {}  # of the windows now in use

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the sample numbers at some positions, as `EpochOrder` does."""
        check_within(positions, self.num_samples)
        windows = np.searchsorted(self._window_ends, positions, side="right")
        numbers = np.empty(len(positions), dtype=np.int64)
        for window in np.unique(windows).tolist():
            inside = windows == window
            first = int(self._window_ends[window - 1]) if window else 0
            draws, permutation = self._drawn.get(window) or self._draw(window)
            numbers[inside] = draws[permutation(positions[inside] - first)]
        return numbers

    def _divided(self, balance: float) -> np.ndarray:
        """Return how often each window draws each class, int64 [windows, classes]."""
        shards_in_window = self.window or max(1, self.num_shards)
        windows = -(-self.num_shards // shards_in_window)
        window_of = np.empty(self.num_shards, dtype=np.int64)
        window_of[self._shards] = np.arange(self.num_shards) // shards_in_window
        classes = int(self._targets.max(initial=-1)) + 1
        cells = np.repeat(window_of, self._sizes) * classes + self._targets
        held = np.bincount(cells, minlength=windows * classes).reshape(windows, classes)
        held = held.cumsum(axis=0, dtype=np.int64)
        counts = held[-1] if windows else np.zeros(classes, np.int64)
        draws = class_draws(counts, balance)
        # Rounded sums, so that a class is drawn `draws` times in all.
        drawn = (draws * held + counts // 2) // np.maximum(counts, 1)
        return np.diff(drawn, axis=0, prepend=0)

    def _draw(self, window: int) -> tuple[np.ndarray, Permutation]:
        """Return the samples that a window draws, grouped by class, and their permutation."""
        size = self.window or max(1, self.num_shards)
        shards = self._shards[window * size : (window + 1) * size].tolist()
        ranges = [self._starts[shard] + np.arange(self._sizes[shard]) for shard in shards]
        members = np.concatenate(ranges)
        assert self._key is not None
        key = subkey(self._key, window.to_bytes(8, "little"))
        shuffle = Permutation(len(members), subkey(key, b"members"))
        shuffled = members[shuffle(np.arange(len(members)))]
        classes = self._targets[shuffled]
        by_class = shuffled[np.argsort(classes, kind="stable")]
        wanted = self._window_draws[window]
        held = np.bincount(classes, minlength=len(wanted))
        first, slot = (np.repeat(np.cumsum(each) - each, wanted) for each in (held, wanted))
        repeated = (np.arange(len(slot)) - slot) % np.repeat(held, wanted)
        drawn = by_class[first + repeated], Permutation(len(slot), key)
        if len(self._drawn) >= MAX_WINDOWS_IN_USE:
            self._drawn.clear()
        self._drawn[window] = drawn
        return drawn
