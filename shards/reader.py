"""Samples of a shard set by number. Local sets are memory-mapped, remote ones fetched ahead."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa

from shards.arrow_values import as_numpy
from shards.digests import sha256_hex
from shards.errors import CorruptSampleError, ShardError
from shards.index import ShardInfo
from shards.index_cache import REMEDY, IndexCache
from shards.local_tars import LocalTars, default_max_open
from shards.raw_sample import Block, RawSample
from shards.remote_tars import RemoteReading, RemoteTars
from shards.reused_memory import ReusedMemory
from shards.shard_request import ShardRequest, copies
from shards.shard_set import ShardSet

__all__ = ["RawSample", "ShardReader"]

_INDEXES_AHEAD = 16
"""The indexes that are begun ahead while all of them are read."""


class _Options(TypedDict):
    max_open_tars: int | None
    max_index_bytes: int
    remote: RemoteReading | None
    verify_samples: bool


class ShardReader:
    """The samples of one split, numbered in the order of the shards and within them.

    Indexes and tars are opened at first use, and the least recently used are closed. Members of a
    sample stay valid while they are referenced. In a local set, members are views of memory-mapped
    tars. A shard of a remote set is fetched whole into a local cache once `read_ahead` has named
    it, or once ranged reads of it have cost as much. Each sample is compared with its sha256 in the
    index, and each index with its sha256 in `shards.parquet`.

    A reader is pickled as its arguments, so each loader worker opens its own files. Not safe for
    several threads.

    Args:
        shard_set: An open set.
        split: One of its splits.
        max_open_tars: The most memory maps, each with a file descriptor. Maps of members that the
            caller still holds count too. The default is a quarter of the process's limit of files.
        max_index_bytes: The most memory for indexes, about 200 bytes per sample. If a shuffle
            covers more shards than fit, indexes are read again and again; then use a window.
        remote: How to read a set that is not local. The default is `shard_set.remote`.
        verify_samples: Whether to compare each sample with its sha256 in the index, so that a
            changed bit is never used as data. If false, only ranged remote reads are compared.

    Attributes:
        is_local: Whether the set is in a local folder.
        shard_sizes: The samples in each of the split's shards, int64 [shards].

    Raises:
        ShardError: The set has no such split, or a limit is not positive.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        split: str,
        *,
        max_open_tars: int | None = None,
        max_index_bytes: int = 2 << 30,
        remote: RemoteReading | None = None,
        verify_samples: bool = True,
    ) -> None:
        max_open = default_max_open() if max_open_tars is None else max_open_tars
        if max_open < 1 or max_index_bytes < 1:
            raise ShardError(
                f"max_open_tars {max_open_tars}, max_index_bytes {max_index_bytes}: "
                "give at least 1 of each"
            )
        self.shard_set = shard_set
        self.split = split
        self._options: _Options = {
            "max_open_tars": max_open_tars,
            "max_index_bytes": max_index_bytes,
            "remote": remote,
            "verify_samples": verify_samples,
        }
        self._verify_samples = verify_samples
        location, shards = shard_set.location, shard_set.shards(split)
        reading = remote or shard_set.remote or RemoteReading()
        self.is_local = location.folder is not None
        self.shard_sizes: np.ndarray = as_numpy(shards["samples"])
        self._names = _tar_names(shard_set, shards)
        self._ends = np.cumsum(self.shard_sizes, dtype=np.int64)
        self._indexes = IndexCache(
            location,
            shard_set.names,
            shards,
            len(shard_set.manifest.classes),
            max_index_bytes,
            reading.num_threads,
            keep_sample_hashes=verify_samples or not self.is_local,
        )
        self._targets: np.ndarray | None = None
        self._memory = ReusedMemory()
        self._tars: LocalTars | RemoteTars
        if location.folder is not None:
            self._tars = LocalTars(location.folder, self._names, max_open)
        else:
            sizes = as_numpy(shards["bytes"])
            self._tars = RemoteTars(
                location, self._names, shards["sha256"], sizes, reading, max_open
            )

    def __reduce__(self) -> tuple:
        return _rebuild, (self.shard_set, self.split, self._options)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, i: int) -> RawSample:
        """Read sample `i` of the split. Raises like `read_many`."""
        return self.read_many(np.array([i]))[0]

    def read_many(self, numbers: np.ndarray, *, copy: bool = False) -> Sequence[RawSample]:
        """Read samples by number.

        Args:
            numbers: Integers [n] in [0, len(self)), in any order, repeated or not.
            copy: Whether to read the members into memory of their own. They are then no views of
                the tars, and reading them cannot wait for the disk. The memory is reused when
                nothing refers to any of the n samples or their members. That is faster than `bytes`
                of each member.

        Returns:
            The n samples in the given order.

        Raises:
            IndexError: A number is out of range.
            ShardError: A tar or index is missing or cut short, or a sample has changed since it was
                written. The message names the shard and the sample, so that a caller can count it
                and read the others one by one.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        outside = (numbers < 0) | (numbers >= len(self))
        if outside.any():
            raise IndexError(f"sample {numbers[outside][0]} of {len(self)} in split {self.split!r}")
        shards = self.shards_of(numbers)
        rows = (numbers - (self._ends - self.shard_sizes)[shards]).tolist()
        groups: dict[int, list[int]] = {}
        for position, shard in enumerate(shards.tolist()):
            groups.setdefault(shard, []).append(position)
        samples: dict[int, RawSample] = {}
        try:
            requests = self._begun(groups, rows)
            room = self._memory.lease(sum(each.num_bytes for each in requests)) if copy else None
            for request in requests:
                blocks = self._blocks(request, room)
                room = room and room[request.num_bytes :]
                for position, block in zip(request.positions, blocks, strict=True):
                    samples[position] = RawSample(
                        int(numbers[position]), request.shard_index, rows[position], block
                    )
        except BaseException:
            self._forget()
            raise
        if isinstance(self._tars, RemoteTars):
            self._tars.begin_postponed()
        return [samples[position] for position in range(len(numbers))]

    def shards_of(self, numbers: np.ndarray) -> np.ndarray:
        """Map sample numbers, int64 [n], to shards, int64 [n], as indices into `shard_sizes`."""
        return np.searchsorted(self._ends, numbers, side="right")

    def keys_of(self, shard: int) -> list[str]:
        """Return the keys of a shard's samples, in order.

        Args:
            shard: The shard, as an index into `shard_sizes`.

        Raises:
            ShardError: Its index is missing, damaged or not the published one.
        """
        keys: list[str] = self._indexes[shard].keys.to_pylist()
        return keys

    def targets(self) -> np.ndarray:
        """Return the class number of every sample, int32 [len(self)], -1 for one without a class.

        The first call reads the indexes of all shards of the split.

        Raises:
            ShardError: An index is missing, unreadable, or not the published one.
        """
        if self._targets is None:
            found = np.full(len(self), -1, np.int32)
            starts = self._ends - self.shard_sizes
            try:
                for shard in range(len(self._ends)):
                    self._indexes.begin(range(shard, min(shard + _INDEXES_AHEAD, len(self._ends))))
                    own = as_numpy(self._indexes[shard].targets.fill_null(-1))
                    found[starts[shard] : self._ends[shard]] = own
            except BaseException:
                self._forget()
                raise
            self._targets = found
        return self._targets

    def read_ahead(self, now: Sequence[int], later: Sequence[int]) -> None:
        """Announce which shards are read next.

        For a remote set, threads fetch the shards `now` whole, then as many of `later` as the cache
        can hold in addition. Other shards are released. For a local set this does nothing, because
        the operating system reads ahead.

        Args:
            now: The shards needed first, as indices into `shard_sizes`.
            later: The shards needed afterwards.

        Raises:
            ShardError: The shards `now` do not fit in the cache together.
        """
        if isinstance(self._tars, RemoteTars):
            self._indexes.read_ahead([*now, *later])  # first, because they are small
            self._tars.read_ahead(now, later)

    def _begun(self, groups: dict[int, list[int]], rows: list[int]) -> list[ShardRequest]:
        """Return a request for each shard of `groups`. Remote reads of all shards begin at once."""
        requests = []
        if not self.is_local:
            self._indexes.begin(groups)
        for shard, positions in groups.items():
            index = self._indexes[shard]
            if self._verify_samples or not self.is_local:
                extents = [index.extent(rows[position]) for position in positions]
            else:
                extents = [index.payloads(rows[position]) for position in positions]
            if isinstance(self._tars, RemoteTars):
                self._tars.begin(shard, extents)
            requests.append(
                ShardRequest(
                    shard, index, positions, [rows[position] for position in positions], extents
                )
            )
        return requests

    def _blocks(self, request: ShardRequest, room: memoryview | None) -> list[Block]:
        """Return for each sample of `request` a block that contains it, in `room` if given."""
        try:
            blocks = self._tars.blocks(request.shard, request.extents)
            if room is not None:
                blocks = copies(blocks, request.extents, room)
        except FileNotFoundError as error:
            raise ShardError(
                f"{self._where(request)}: missing, with sample {request.key(0)!r}; {REMEDY}"
            ) from error
        except ShardError as error:
            raise ShardError(
                f"sample {request.key(0)!r} of {self._where(request)}: {error}"
            ) from error
        for number, (block, (start, stop)) in enumerate(zip(blocks, request.extents, strict=True)):
            if block.base + len(block.data) < stop:
                raise ShardError(
                    f"{self._where(request)}: cut short, sample {request.key(number)!r} should "
                    f"end at byte {stop}; {REMEDY}"
                )
            if self._verify_samples or not block.checked:
                content = block.data[start - block.base : stop - block.base]
                index, row = request.shard_index, request.rows[number]
                if sha256_hex(content) != index.sha256s[row].as_py():
                    raise CorruptSampleError(
                        f"{self._where(request)}: sample {request.key(number)!r} has another "
                        f"sha256 than its index says; {REMEDY}",
                        index.source_uris[row].as_py(),
                    )
        return blocks

    def _where(self, request: ShardRequest) -> str:
        return f"{self.shard_set.location}/{self._names[request.shard].as_py()}"

    def _forget(self) -> None:
        self._indexes.read_ahead(())
        if isinstance(self._tars, RemoteTars):
            self._tars.forget_ranges()


def _tar_names(shard_set: ShardSet, shards: pa.Table) -> pa.ChunkedArray:
    """Return the paths of the tars of some shards within the set."""
    if not shard_set.names.by_content:
        return shards["name"]
    named = map(shard_set.names.tar, (ShardInfo(**row) for row in shards.to_pylist()))
    return pa.chunked_array([pa.array(named, pa.string())])


def _rebuild(shard_set: ShardSet, split: str, options: _Options) -> ShardReader:
    return ShardReader(shard_set, split, **options)
