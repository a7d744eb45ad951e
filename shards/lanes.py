"""The order of an epoch of streams: lanes that each read one recording after another.

A lane is a row of the batch. It reads the parts of a recording in order, then the next recording.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from shards.errors import ShardError
from shards.order import Permutation
from shards.recordings import Recordings

EMPTY = -1
"""The number of a position without a sample, as `shards.epoch.PADDING`."""


@dataclass(frozen=True)
class Lanes:
    """The shape of an optimizer step of streams.

    Attributes:
        count: The number of lanes of all ranks together, at least 1.
        parts: The number of parts that each lane reads in one optimizer step, at least 1.
        groups: The number of groups into which the lanes are divided. The groups take turns: each
            reads all its parts of a step before the next group does. It divides `count`.
    """

    count: int
    parts: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        if min(self.count, self.parts, self.groups) < 1 or self.count % self.groups:
            raise ShardError(
                f"{self}: give at least 1 of each, and lanes that are a multiple of the groups"
            )

    @property
    def positions(self) -> int:
        """The positions of an optimizer step."""
        return self.count * self.parts


class LaneOrder:
    """The sample at each position of an epoch of streams; `EMPTY` where a lane has none.

    The recordings are spread over the lanes by their lengths, the longest first, each to the lane
    that has the fewest parts so far. So every epoch has the same number of steps, and every sample
    occurs once. The key decides which of several equally long recordings a lane gets, and the order
    of recordings within each lane. Positions count the steps, and in each step the groups, the
    parts and the lanes. Memory is O(recordings).

    Args:
        recordings: The recordings of the split.
        key: The key from `epoch_key`; None keeps the order of the shards.
        lanes: The shape of a step.

    Attributes:
        num_samples: The number of positions, with the empty ones.
        window: None: all shards are read together.
        nodes: 1: a rank reads the shards of all ranks.
    """

    window = None
    nodes = 1

    def __init__(self, recordings: Recordings, key: bytes | None, lanes: Lanes) -> None:
        self._lanes = lanes
        lengths, count = recordings.lengths, len(recordings.lengths)
        ranks = np.arange(count, dtype=np.int64)
        if key is not None:
            ranks = Permutation(count, key)(ranks)
        lane_of = _spread(lengths, ranks, lanes.count)
        order = np.lexsort((ranks, lane_of))
        lengths, lane_of = lengths[order], lane_of[order]
        self._firsts, self._lengths = recordings.firsts[order], lengths
        before = np.cumsum(lengths) - lengths
        loads = np.bincount(lane_of, lengths, lanes.count).astype(np.int64)
        begins = before - (np.cumsum(loads) - loads)[lane_of]  # within the lane
        self.num_steps = -(-int(loads.max(initial=0)) // lanes.parts)
        self._length = self.num_steps * lanes.parts  # of every lane
        self._begins = lane_of * self._length + begins
        self.num_samples = self._length * lanes.count

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the sample numbers at some positions.

        Args:
            positions: Positions in the epoch, int64 [n].

        Returns:
            Numbers within the split, int64 [n], or `EMPTY`.

        Raises:
            ValueError: A position is outside the epoch.
        """
        if positions.size and not (positions.min() >= 0 and positions.max() < self.num_samples):
            raise ValueError(f"positions outside [0, {self.num_samples})")
        lanes, width = self._lanes, self._lanes.count // self._lanes.groups
        turn, lane = np.divmod(positions, width)
        turn, part = np.divmod(turn, lanes.parts)
        step, group = np.divmod(turn, lanes.groups)
        places = (group * width + lane) * self._length + step * lanes.parts + part
        found = np.searchsorted(self._begins, places, side="right") - 1
        if not len(self._begins):
            return np.full(len(positions), EMPTY, np.int64)
        within = places - self._begins[found]
        is_there = (found >= 0) & (within < self._lengths[found])
        return np.where(is_there, self._firsts[found] + within, EMPTY)


def _spread(lengths: np.ndarray, ranks: np.ndarray, num_lanes: int) -> np.ndarray:
    """Return the lane of each recording, int64 [recordings]."""
    lane_of = np.empty(len(lengths), np.int64)
    loads = [(0, lane) for lane in range(num_lanes)]
    for recording in np.lexsort((ranks, -lengths)).tolist():
        load, lane = loads[0]
        lane_of[recording] = lane
        heapq.heapreplace(loads, (load + int(lengths[recording]), lane))
    return lane_of
