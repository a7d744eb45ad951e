"""The order of an epoch: a permutation evaluated at any position, never listed."""

import hashlib
import json

import numpy as np

_NUM_ROUNDS = 8


def epoch_key(digest: str, split: str, seed: int, epoch: int) -> bytes:
    """The key of an epoch's order: a pure function of the set's digest, split, seed and epoch."""
    return hashlib.blake2b(json.dumps([digest, split, seed, epoch]).encode()).digest()


class Permutation:
    """A permutation of 0 ... n - 1 chosen by `key`, in O(1) memory.

    A Feistel network permutes 0 ... 4^k - 1, the smallest such range that holds n; positions that
    land at n or beyond are sent through it again until they do not ("cycle walking"), which takes
    fewer than four passes on average and keeps the map one-to-one.

    Args:
        n: 0 <= n <= 2^62.
        key: any bytes.
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
        """Where `positions` go: integers [...] in [0, n) to int64 of the same shape.

        Raises:
            ValueError: a position outside [0, n).
        """
        if positions.size and not (positions.min() >= 0 and positions.max() < self.n):
            raise ValueError(f"positions outside [0, {self.n})")
        values = self._feistel(positions.astype(np.uint64))
        while (outside := values >= self.n).any():
            values[outside] = self._feistel(values[outside])
        return values.astype(np.int64)

    def _feistel(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half_bits, values & self._half_mask
        for round_key in self._round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & self._half_mask)
        return (left << self._half_bits) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
