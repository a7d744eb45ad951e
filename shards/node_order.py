"""The order of an epoch in which each node reads shards of its own, whatever the world size."""

from typing import Any

import numpy as np

from shards.order import EpochOrder, check_within


class NodeOrder(EpochOrder):
    """An order that takes the samples of each global batch equally from several parts of the set.

    The permuted shards are cut into `nodes` parts of equally many samples. Position p is the next
    sample of part `p % nodes`. Within a part, the windows are those of `EpochOrder`, each of at
    least one shard, and together of about `window` shards. `EpochPlan` gives each rank rows of as
    few parts as possible. So if there are as many nodes as parts, each shard is fetched by one
    node, and by a second one if a cut is within the shard. With `EpochOrder`, every node fetches
    every shard. The order itself does not depend on the nodes that there are.

    Args:
        shard_sizes: The samples of each shard, int64 [shards].
        key: The key from `epoch_key`; None keeps the order of the shards within each part.
        window: The number of shards that are read together, at least 1; None for all.
        nodes: The number of parts, at least 1.
    """

    def __init__(
        self, shard_sizes: np.ndarray, key: bytes | None, window: int | None, nodes: int
    ) -> None:
        whole = max(1, len(shard_sizes))
        super().__init__(shard_sizes, key, whole if window is None else window)
        self.nodes, self.window = nodes, window
        self._length = self.num_samples // nodes  # of a part; what is left follows the parts
        shards_in_window = whole if window is None else max(1, window // nodes)
        begins = np.arange(nodes, dtype=np.int64) * self._length
        inner = [self._window_begins(begin, shards_in_window) for begin in begins.tolist()]
        left = [nodes * self._length] if self._length * nodes < self.num_samples else []
        self._begins = np.concatenate([*inner, np.array(left, np.int64)])
        self._window_ends = np.append(self._begins[1:], self.num_samples)
        self._part_of = np.minimum(self._begins // max(1, self._length), nodes)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        check_within(positions, self.num_samples)
        inside = self._within_parts(positions)
        if self._key is not None:
            return self._permuted_in_windows(inside)
        return inside.astype(np.int64)

    def shards_at(self, positions: np.ndarray) -> tuple[list[int], list[int]]:
        inside = self._within_parts(positions)
        windows = np.unique(np.searchsorted(self._window_ends, inside, side="right"))
        later = windows + 1
        later = later[later < len(self._part_of)]
        later = later[self._part_of[later] == self._part_of[later - 1]]
        return self._shards_of(windows), self._shards_of(later)

    def _within_parts(self, positions: np.ndarray) -> np.ndarray:
        """Return the indices, part after part, of the samples at positions."""
        row, part = np.divmod(positions, self.nodes)
        return np.where(row < self._length, part * self._length + row, positions)

    def _window_begins(self, begin: int, num_shards: int) -> np.ndarray:
        """Return where the windows of the part that starts at a sample begin."""
        if not self._length:
            return np.empty(0, np.int64)
        end = begin + self._length
        first, last = np.searchsorted(self._ends, [begin, end - 1], side="right").tolist()
        ends = self._ends[first + num_shards - 1 : last : num_shards]
        return np.concatenate([np.array([begin], np.int64), ends])

    def _shards_of(self, windows: np.ndarray) -> list[int]:
        found: dict[int, Any] = {}
        for window in windows.tolist():
            begin, end = self._begins[window], self._window_ends[window]
            first, last = np.searchsorted(self._ends, [begin, end - 1], side="right").tolist()
            found |= dict.fromkeys(self._shards[first : last + 1].tolist())
        return list(found)
