"""Samples of a shard set by number: memory-mapped where local, ranged reads elsewhere."""

import mmap
import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shards.digests import sha256_hex
from shards.errors import ShardError
from shards.index import ShardIndex, index_name
from shards.shard_set import ShardSet

_REMEDY = "run 'perceiver verify', then 'perceiver preprocess' again"


@dataclass(frozen=True, slots=True)
class RawSample:
    """A sample as it was written.

    Attributes:
        key: its key.
        members: member name ("image.npy") to its content, read-only.
        target: class number, or None.
        source_uri: what it was made from.
        index: its number within the split.
    """

    key: str
    members: dict[str, memoryview]
    target: int | None
    source_uri: str
    index: int


class ShardReader:
    """The samples of one split, numbered in the order of shards and within them.

    Indexes and tars are opened when first needed and the least recently used let go; a sample's
    members stay valid for as long as they are held. Pickles as its arguments, so that each loader
    worker opens its own files. Not for several threads at once.

    Args:
        shard_set: an open set.
        split: one of its splits.
        max_open_tars: memory maps held; each takes a file descriptor.
        max_cached_indexes: indexes held, about 200 bytes a sample.

    Raises:
        ShardError: the set has no such split.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        split: str,
        *,
        max_open_tars: int = 256,
        max_cached_indexes: int = 1024,
    ) -> None:
        self.shard_set = shard_set
        self.split = split
        self._limits = {"max_open_tars": max_open_tars, "max_cached_indexes": max_cached_indexes}
        shards = shard_set.shards(split)
        self._numbers = shards["number"].to_numpy()
        self._names = shards["name"]
        self._index_sha256s = shards["index_sha256"]
        self._ends = np.cumsum(shards["samples"].to_numpy())
        self._index = lru_cache(max_cached_indexes)(self._load_index)
        self._map = lru_cache(max_open_tars)(self._map_tar)

    def __reduce__(self) -> tuple:
        return _rebuild, (self.shard_set, self.split, self._limits)

    def __len__(self) -> int:
        return self.shard_set.num_samples(self.split)

    def read(self, i: int) -> RawSample:
        """Sample `i` of the split.

        Raises:
            IndexError: no such number.
            ShardError: its tar or index is missing, cut short or changed; names shard and sample,
                so that a caller can count and skip it.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)} in split {self.split!r}")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        index = self._index(shard)
        row = int(i - self._ends[shard]) + len(index)
        key = index.keys[row].as_py()
        members = index.members(row)
        start, stop = members[0].offset, members[-1].offset + members[-1].length
        block = self._read_range(self._names[shard].as_py(), start, stop, key)
        return RawSample(
            key,
            {
                name: block[offset - start : offset - start + length]
                for name, offset, length in members
            },
            index.targets[row].as_py(),
            index.source_uris[row].as_py(),
            int(i),
        )

    def _read_range(self, name: str, start: int, stop: int, key: str) -> memoryview:
        location = self.shard_set.location
        try:
            if location.folder:
                block = self._map(name)[start:stop]
            else:
                block = memoryview(location.read_range(name, start, stop))
        except FileNotFoundError as error:
            raise ShardError(
                f"{location}/{name}: missing, with sample {key!r}; {_REMEDY}"
            ) from error
        if len(block) < stop - start:
            raise ShardError(
                f"{location}/{name}: cut short, sample {key!r} should end at byte {stop}; {_REMEDY}"
            )
        return block

    def _map_tar(self, name: str) -> memoryview:
        """A local tar's bytes; unmapped once nothing holds a part of them."""
        assert self.shard_set.location.folder
        with (self.shard_set.location.folder / name).open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return memoryview(b"")  # an empty file cannot be mapped
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def _load_index(self, shard: int) -> ShardIndex:
        location, name = self.shard_set.location, index_name(int(self._numbers[shard]))
        try:
            data = location.read(name)
        except FileNotFoundError as error:
            raise ShardError(f"{location}/{name}: missing; {_REMEDY}") from error
        if sha256_hex(data) != self._index_sha256s[shard].as_py():
            raise ShardError(f"{location}/{name}: sha256 differs from shards.parquet; {_REMEDY}")
        return ShardIndex.decode(data, f"{location}/{name}")


def _rebuild(shard_set: ShardSet, split: str, limits: dict[str, int]) -> ShardReader:
    return ShardReader(shard_set, split, **limits)
