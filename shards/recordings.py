"""Which samples of a split are the parts of one recording, in order.

`perceiver preprocess` cuts a film or a text into parts: its sample KEY is the first part, KEY-00001
the second, and so on. They lie one after another in one shard.
"""

import re
from dataclasses import dataclass

import numpy as np

from shards.errors import ShardError
from shards.reader import ShardReader

_KEY = re.compile(r"([0-9a-f]{24})(?:-([0-9]{5,9}))?")
_REMEDY = "make the set with 'perceiver preprocess', or train without training.stream"


@dataclass(frozen=True)
class Recordings:
    """The recordings of a split, in the order of the shards.

    A part that the set lacks leaves no gap: the part after it follows the part before it.

    Attributes:
        firsts: The number of each recording's first sample within the split, int64 [recordings],
            rising.
        lengths: The number of samples of each recording, int64 [recordings], at least 1. They add
            up to the samples of the split.
    """

    firsts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, reader: ShardReader) -> "Recordings":
        """Find the recordings of a reader's split. It reads the index of every shard.

        Raises:
            ShardError: The set is not local, a key does not number the parts, or the parts of a
                recording are out of order.
        """
        where = f"{reader.shard_set.location}, split {reader.split!r}"
        if not reader.is_local:
            raise ShardError(
                f"{where}: recordings are read as streams from local sets only; copy the set to a "
                "folder"
            )
        firsts: list[int] = []
        before, number = ("", 0), 0
        for shard in range(len(reader.shard_sizes)):
            for key in reader.keys_of(shard):
                found = _KEY.fullmatch(key)
                if found is None:
                    raise ShardError(f"{where}: key {key!r} does not number a part; {_REMEDY}")
                recording, part = found[1], int(found[2] or 0)
                if recording != before[0]:
                    firsts.append(number)
                elif part <= before[1]:
                    raise ShardError(
                        f"{where}: part {part} of recording {recording} comes after its part "
                        f"{before[1]}; {_REMEDY}"
                    )
                before, number = (recording, part), number + 1
        starts = np.array(firsts, np.int64)
        return cls(starts, np.diff(starts, append=number))

    @property
    def num_samples(self) -> int:
        """The number of samples of the split."""
        return int(self.lengths.sum())

    def are_first(self, numbers: np.ndarray) -> np.ndarray:
        """Return which samples are the first part of a recording, bool [n].

        Args:
            numbers: Sample numbers, int64 [n]. Negative ones, for padding, are no part.
        """
        return (numbers >= 0) & (self._parts(numbers)[0] == 0)

    def are_last(self, numbers: np.ndarray) -> np.ndarray:
        """Return which samples are the last part of a recording, bool [n], as in `are_first`."""
        parts, lengths = self._parts(numbers)
        return (numbers >= 0) & (parts == lengths - 1)

    def _parts(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each sample's place in its recording, from 0, and the recording's length."""
        if not len(self.firsts):
            return np.full(len(numbers), -1), np.zeros(len(numbers), np.int64)
        found = np.maximum(np.searchsorted(self.firsts, numbers, side="right") - 1, 0)
        return numbers - self.firsts[found], self.lengths[found]
