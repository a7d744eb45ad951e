"""Tars behind a URL: fetched whole into a local cache ahead of use, or read in ranges."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from shards.cache import NoRoomError, ShardCache
from shards.errors import ShardError
from shards.local_tars import Extent
from shards.location import Location
from shards.parts import PartReader
from shards.prefetch import Prefetcher
from shards.raw_sample import Block

_MAX_GAP_BYTES = 1 << 20
"""Extents with at most this gap between them are read in one request."""

_EARLY_GAP_BYTES = 1 << 16
"""The same gap while the whole shard is being fetched, because these bytes are read twice."""

_SHARDS_AT_A_TIME = 4
"""The shards that are fetched whole at a time. Their parts share the requests."""

_MOST_EARLY_REQUESTS = 16
"""The most ranges of a shard that are read while the whole shard is being fetched."""

_MAX_REMEMBERED = 1 << 16


def default_cache_folder() -> Path:
    """Return `$PERCEIVER_CACHE`, or `perceiver/shards` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if given := os.environ.get("PERCEIVER_CACHE"):
        return Path(given)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "perceiver" / "shards"


@dataclass(frozen=True)
class RemoteReading:
    """How to read a set that is not local.

    Attributes:
        cache_folder: The folder for whole shards, on a local disk. Processes may share it.
        cache_bytes: The most bytes in the cache. Two windows of shards should fit.
        request_bytes: The most bytes in one request for a whole shard.
        num_threads: The most requests at a time for whole shards, and the most for ranges.
        early_share: The share of a shard's bytes that may be read in ranges while the whole shard
            is being fetched. The first batches then need not wait for whole shards; these bytes are
            read twice. With 0, they wait.
        request_cost: The cost of a request in addition to its bytes, in bytes; the default is about
            100 ms at 80 MB/s. Once the ranged reads of a shard have cost as much as its size, it is
            fetched whole.
    """

    cache_folder: Path = field(default_factory=default_cache_folder)
    cache_bytes: int = 32 << 30
    request_bytes: int = 8 << 20
    num_threads: int = 16
    request_cost: int = 8 << 20
    early_share: float = 1 / 8

    def __post_init__(self) -> None:
        for name in ("cache_bytes", "request_bytes", "num_threads", "request_cost"):
            if getattr(self, name) < 1:
                raise ShardError(f"{name} {getattr(self, name)}: give at least 1")
        if not 0 <= self.early_share <= 1:
            raise ShardError(f"early_share {self.early_share}: give a number from 0 to 1")


class _Early(NamedTuple):
    """The ranges of a shard, and their bytes, that were read while it was being fetched."""

    requests: int
    bytes: int


class RemoteTars:
    """Whole shards from a cache, and ranges of shards that are not worth fetching whole.

    A shard is fetched whole if `read_ahead` named it, or if ranged reads of it have cost as much as
    the whole shard. Until it is there, a few ranges of it are read. If the cache has no room for
    it, only ranges are read. Memory is `num_threads * request_bytes`, the ranges that a request
    needs, and the memory maps.

    Args:
        location: The location of the set.
        names: The names of the tars, Arrow strings [shards].
        sha256s: The sha256 of each tar, Arrow strings [shards].
        sizes: The sizes of the tars in bytes, int64 [shards].
        reading: The limits.
        max_open: The most memory maps that are held at a time.
    """

    def __init__(
        self,
        location: Location,
        names: pa.ChunkedArray,
        sha256s: pa.ChunkedArray,
        sizes: np.ndarray,
        reading: RemoteReading,
        max_open: int,
    ) -> None:
        self._location = location
        self._names = names
        self._sha256s = sha256s
        self._sizes = sizes
        self._reading = reading
        self._max_open = max_open
        self._cache = ShardCache(reading.cache_folder, reading.cache_bytes)
        self._held: OrderedDict[int, memoryview] = OrderedDict()
        self._spent: OrderedDict[int, int] = OrderedDict()  # shard to cost of its ranges, in bytes
        self._early: dict[int, _Early] = {}
        self._postponed: dict[int, None] = {}  # in order
        self._was_called = False
        self._tars: Prefetcher[int, memoryview] = Prefetcher(_SHARDS_AT_A_TIME)
        self._ranges: Prefetcher[tuple[int, int, int], memoryview] = Prefetcher(reading.num_threads)
        self._parts: PartReader | None = None
        self._process = 0

    def read_ahead(self, now: Sequence[int], later: Sequence[int]) -> None:
        """Fetch whole the shards `now`, which are needed first, and as many of `later` as fit.

        Raises:
            ShardError: The shards `now` do not fit in the cache together.
        """
        room = self._reading.cache_bytes - int(self._sizes[list(now)].sum())
        if room < 0:
            raise ShardError(
                f"{self._cache.folder}: a window of {len(now)} shards takes "
                f"{self._reading.cache_bytes - room} bytes and the cache has "
                f"{self._reading.cache_bytes}; allow it more or read a smaller window of shards"
            )
        wanted = list(now)
        for shard in later:
            room -= int(self._sizes[shard])
            if room < 0:
                break
            wanted.append(shard)
        self._tars.forget_all_but(wanted)
        for shard in self._held.keys() - set(wanted):
            del self._held[shard]
        for shard in self._early.keys() - set(wanted):
            del self._early[shard]
        self._postponed = dict.fromkeys(wanted)
        if self._was_called or not self._reading.early_share:
            self.begin_postponed()
        self._was_called = True

    def begin_postponed(self) -> None:
        """Start to fetch the shards of the first `read_ahead`. A second call of it does so, too.

        Until then, the link and the processor are left to the ranges of the first samples.
        """
        for shard in self._postponed:
            if shard not in self._held:
                self._begin_whole(shard)
        self._postponed.clear()

    def begin(self, shard: int, extents: list[Extent]) -> None:
        """Start to fetch what a later call of `blocks` with these arguments needs."""
        if shard in self._postponed and self._cached(shard) is not None:
            return
        if shard in self._tars or shard in self._postponed:
            parts = _merged(extents, _EARLY_GAP_BYTES)
            if not self._tars.is_done(shard) and self._may_read_early(shard, parts):
                self._begin_ranges(shard, parts)
            elif shard in self._postponed:
                self._begin_whole(shard)
        elif self._find(shard) is None:
            parts = _merged(extents, _MAX_GAP_BYTES)
            cost = len(parts) * self._reading.request_cost + sum(
                stop - start for start, stop in parts
            )
            spent = self._spent[shard] = self._spent.pop(shard, 0) + cost
            if len(self._spent) > _MAX_REMEMBERED:
                self._spent.popitem(last=False)
            if int(self._sizes[shard]) <= min(spent, self._reading.cache_bytes):
                self._begin_whole(shard)
                return
            self._begin_ranges(shard, parts)

    def blocks(self, shard: int, extents: list[Extent]) -> list[Block]:
        """Return for each extent a block that contains it. `begin` had the same arguments.

        Raises:
            FileNotFoundError: The tar does not exist.
            ShardError: The tar cannot be read, is cut short or damaged, or the cache cannot be
                written.
        """
        parts = _merged(extents, _EARLY_GAP_BYTES)
        is_early = all((shard, *part) in self._ranges for part in parts)
        if not is_early or self._tars.is_done(shard):
            if is_early:
                self._ranges.forget([(shard, *part) for part in parts])
            if (tar := self._find(shard)) is not None:
                return [Block(tar, 0)] * len(extents)
            parts = _merged(extents, _MAX_GAP_BYTES)
            self._begin_ranges(shard, parts)
        data = {part: self._ranges.take((shard, *part)) for part in parts}
        return [
            next(
                Block(data[part], part[0], checked=False)
                for part in parts
                if part[0] <= start < part[1]
            )
            for start, _ in extents
        ]

    def forget_ranges(self) -> None:
        """Drop the ranges that were begun and not requested; another part of the request failed."""
        self._ranges.forget_all_but(())

    def _begin_ranges(self, shard: int, parts: list[Extent]) -> None:
        for part in parts:
            self._ranges.begin((shard, *part), self._read_range)

    def _may_read_early(self, shard: int, parts: list[Extent]) -> bool:
        """Return whether ranges are read although the whole shard is being fetched. Count them."""
        before = self._early.get(shard, _Early(0, 0))
        early = _Early(
            before.requests + len(parts),
            before.bytes + sum(stop - start for start, stop in parts),
        )
        is_little = early.bytes <= self._reading.early_share * int(self._sizes[shard])
        if is_little and early.requests <= _MOST_EARLY_REQUESTS:
            self._early[shard] = early
            return True
        return False

    def _find(self, shard: int) -> memoryview | None:
        """Return the whole shard if it is cached or is being fetched by any process, else None."""
        if (tar := self._held.get(shard)) is not None:
            self._held.move_to_end(shard)
            return tar
        if shard in self._tars:
            tar = self._taken(shard)
        else:
            size = int(self._sizes[shard])
            tar = self._cache.open(self._sha256s[shard].as_py(), size, wait=True)
        if tar is not None:
            self._held[shard] = tar
            self._spent.pop(shard, None)
            self._early.pop(shard, None)
            if len(self._held) > self._max_open:
                self._held.popitem(last=False)
        return tar

    def _cached(self, shard: int) -> memoryview | None:
        """Return the whole shard if it is in the cache now."""
        tar = self._cache.open(self._sha256s[shard].as_py(), int(self._sizes[shard]))
        if tar is not None:
            self._held[shard] = tar
        return tar

    def _taken(self, shard: int) -> memoryview | None:
        """Wait for a shard that was begun. Return None if maps in use leave it no room."""
        try:
            return self._tars.take(shard)
        except NoRoomError:
            self._held.clear()  # our own maps may fill the cache
        try:
            return self._fetch(shard)
        except NoRoomError:
            return None

    def _fetch(self, shard: int) -> memoryview:
        sha256, size = self._sha256s[shard].as_py(), int(self._sizes[shard])
        tar = self._cache.open(sha256, size)
        if tar is not None:
            return tar
        assert self._parts is not None, "`_begin_whole` has set it"
        with closing(self._parts.chunks(self._names[shard].as_py(), size)) as chunks:
            return self._cache.add(sha256, size, chunks)

    def _begin_whole(self, shard: int) -> None:
        if self._parts is None or self._process != os.getpid():
            self._process = os.getpid()  # a fork does not copy threads
            reading = self._reading
            self._parts = PartReader(
                self._location.read_exactly, reading.request_bytes, reading.num_threads
            )
        self._tars.begin(shard, self._fetch)

    def _read_range(self, wanted: tuple[int, int, int]) -> memoryview:
        shard, start, stop = wanted
        return memoryview(self._location.read_exactly(self._names[shard].as_py(), start, stop))


def _merged(extents: list[Extent], max_gap: int) -> list[Extent]:
    """Return sorted ranges that cover `extents`. Those at most `max_gap` bytes apart are merged."""
    merged: list[Extent] = []
    for start, stop in sorted(extents):
        if merged and start - merged[-1][1] <= max_gap:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
