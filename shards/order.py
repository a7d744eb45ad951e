"""The order of an epoch: a permutation that is computed at any position and never stored."""

import hashlib
import itertools
import json

import numpy as np

_NUM_ROUNDS = 8
MAX_WINDOWS_IN_USE = 8
"""The windows whose permutations an order keeps."""


def epoch_key(
    digest: str,
    split: str,
    seed: int,
    epoch: int,
    window: int | None = None,
    balance: float = 0.0,
    nodes: int = 1,
) -> bytes:
    """Return the key of an epoch's order, a pure function of the arguments.

    Args:
        digest: The digest of the shard set.
        split: The name of the split.
        seed: The seed of the order.
        epoch: The epoch, from 0.
        window: The number of shards that are shuffled together; None for all.
        balance: How evenly classes are drawn, as in `BalancedOrder`; 0 draws each sample once.
        nodes: The parts of the set that each global batch is taken from, as in `NodeOrder`.

    Returns:
        64 bytes.
    """
    parts = [digest, split, seed, epoch] + ([] if window is None else [window])
    if balance:
        parts = [*parts, "balance", float(balance)]
    if nodes > 1:
        parts = [*parts, "nodes", nodes]
    return hashlib.blake2b(json.dumps(parts).encode()).digest()


class Permutation:
    """A permutation of 0 ... n - 1, selected by `key`, in O(1) memory.

    A Feistel network permutes 0 ... 4^k - 1, the smallest such range that contains 0 ... n - 1. A
    result of n or more is sent through the network again until it is below n ("cycle walking").
    This takes fewer than four passes on average and keeps the map one-to-one.

    Args:
        n: The number of positions, from 0 to 2^62.
        key: Any bytes.
    """

    def __init__(self, n: int, key: bytes) -> None:
        assert 0 <= n <= 1 << 62
        self.n = n
        half_bits = (max(n - 1, 0).bit_length() + 1) // 2
        self._half_bits = np.uint64(half_bits)
        self._half_mask = np.uint64((1 << half_bits) - 1)
        round_keys = hashlib.blake2b(key, digest_size=8 * _NUM_ROUNDS).digest()
        self._round_keys = np.frombuffer(round_keys, dtype="<u8").astype(np.uint64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Permute positions.

        Args:
            positions: Integers [...] in [0, n).

        Returns:
            int64 of the same shape.

        Raises:
            ValueError: A position is outside [0, n).
        """
        check_within(positions, self.n)
        values = self._feistel(positions.astype(np.uint64))
        while (outside := values >= self.n).any():
            values[outside] = self._feistel(values[outside])
        return values.astype(np.int64)

    def _feistel(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half_bits, values & self._half_mask
        for round_key in self._round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & self._half_mask)
        return (left << self._half_bits) | right


class EpochOrder:
    """The sample at each position of an epoch.

    A shuffle without a window is one permutation of all samples. A shuffle with a window of W
    shards permutes the shards, cuts them into windows of W, and permutes the samples within each
    window. So only W shards are read at a time. Without a shuffle, the order is that of the shards.
    Memory is O(shards) with a window, else O(1).

    Args:
        shard_sizes: The samples of each shard, int64 [shards].
        key: The key from `epoch_key`; None keeps the order of the shards.
        window: The number of shards that are read together, at least 1; None for all.

    Attributes:
        nodes: 1: a rank reads the shards of all ranks; see `NodeOrder`.
    """

    nodes = 1

    def __init__(self, shard_sizes: np.ndarray, key: bytes | None, window: int | None) -> None:
        self.num_samples = int(shard_sizes.sum(dtype=np.int64))
        self.num_shards = len(shard_sizes)
        self.window = window
        self._key = key
        if window is None:
            return
        self._shards = np.arange(self.num_shards, dtype=np.int64)
        if key is not None:
            self._shards = Permutation(self.num_shards, subkey(key, b"shards"))(self._shards)
        sizes = shard_sizes[self._shards]
        self._ends = np.cumsum(sizes, dtype=np.int64)  # of shards, in the order of this epoch
        ends_in_set = np.cumsum(shard_sizes, dtype=np.int64)
        # An index into the permuted shards plus the shift is the sample's number in the split.
        self._shift = ends_in_set[self._shards] - self._ends
        last = np.minimum(np.arange(window, self.num_shards + window, window), self.num_shards) - 1
        self._window_ends = self._ends[last]
        self._permuted: dict[int, tuple[int, Permutation]] = {}  # the windows now in use

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the sample numbers at some positions.

        Args:
            positions: Positions in the epoch, int64 [n].

        Returns:
            Numbers within the split, int64 [n].

        Raises:
            ValueError: A position is outside the epoch.
        """
        if self._key is None or self.window is None:
            if self._key is not None:
                return Permutation(self.num_samples, self._key)(positions)
            check_within(positions, self.num_samples)
            return positions.astype(np.int64)
        check_within(positions, self.num_samples)
        return self._permuted_in_windows(positions)

    def _permuted_in_windows(self, positions: np.ndarray) -> np.ndarray:
        windows = np.searchsorted(self._window_ends, positions, side="right")
        indices = np.empty(len(positions), dtype=np.int64)  # into the samples of permuted shards
        for window in np.unique(windows).tolist():
            inside = windows == window
            first, permutation = self._permuted.get(window) or self._permute(window)
            indices[inside] = first + permutation(positions[inside] - first)
        return indices + self._shift[np.searchsorted(self._ends, indices, side="right")]

    def window_at(self, position: int) -> int:
        """Return the window of the sample at `position`. Requires an order with a window."""
        assert self.window is not None
        return int(np.searchsorted(self._window_ends, position, side="right"))

    def shards_in(self, window: int) -> list[int]:
        """Return the shards of a window as indices into `shard_sizes`; empty after the last."""
        assert self.window is not None
        return self._shards[window * self.window : (window + 1) * self.window].tolist()

    def shards_at(self, positions: np.ndarray) -> tuple[list[int], list[int]]:
        """Return the shards that are read at some positions, and those that follow them.

        The order must have a window.

        Args:
            positions: Ascending positions in the epoch, int64 [n], at least one.

        Returns:
            The shards of the window of the first position, and those of the windows after it, up to
            the one after that of the last position, as indices into `shard_sizes`.
        """
        first, last = self.window_at(int(positions[0])), self.window_at(int(positions[-1]))
        later = [self.shards_in(window) for window in range(first + 1, last + 2)]
        return self.shards_in(first), [*itertools.chain(*later)]

    def _permute(self, window: int) -> tuple[int, Permutation]:
        """Return the first position of a window and the permutation within it."""
        assert self._key is not None
        first = int(self._window_ends[window - 1]) if window else 0
        key = subkey(self._key, window.to_bytes(8, "little"))
        if len(self._permuted) >= MAX_WINDOWS_IN_USE:
            self._permuted.clear()
        permuted = first, Permutation(int(self._window_ends[window]) - first, key)
        self._permuted[window] = permuted
        return permuted


def subkey(key: bytes, part: bytes) -> bytes:
    """Return the key of a part of an order."""
    return hashlib.blake2b(part, key=key).digest()


def check_within(positions: np.ndarray, n: int) -> None:
    """Raise ValueError unless all positions are in [0, n)."""
    if positions.size and not (positions.min() >= 0 and positions.max() < n):
        raise ValueError(f"positions outside [0, {n})")


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply the finaliser of splitmix64: every input bit affects every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
