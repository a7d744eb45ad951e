"""The indexes of a split's shards. Each index is read when it is first needed."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial

import pyarrow as pa

from shards.digests import sha256_hex
from shards.errors import ShardError
from shards.index import ShardIndex, ShardInfo, max_index_bytes
from shards.location import Location
from shards.names import FileNames
from shards.prefetch import Prefetcher

REMEDY = "run 'perceiver verify', then 'perceiver preprocess' again"


class IndexCache:
    """The most recently used indexes, each checked against `shards.parquet`.

    Args:
        location: The location of the set.
        names: How the files of the set are named.
        shards: The split's rows of `shards.parquet`, with the columns of `ShardInfo`.
        num_classes: The number of classes; 0 if the set has none.
        max_bytes: The most memory that the indexes take. The last one read is kept in any case.
        num_threads: The number of threads that read indexes ahead.
        keep_sample_hashes: Whether to keep the samples' hashes, a third of the memory.
    """

    def __init__(
        self,
        location: Location,
        names: FileNames,
        shards: pa.Table,
        num_classes: int,
        max_bytes: int,
        num_threads: int,
        *,
        keep_sample_hashes: bool,
    ) -> None:
        self._location, self._names = location, names
        self._shards = shards
        self._num_classes = num_classes
        self._max_bytes = max_bytes
        self._keep_sample_hashes = keep_sample_hashes
        self._bytes = 0
        self._recent: OrderedDict[int, ShardIndex] = OrderedDict()
        self._ahead: Prefetcher[int, ShardIndex] = Prefetcher(num_threads)

    def __getitem__(self, shard: int) -> ShardIndex:
        """Return the index of a shard.

        Raises:
            ShardError: The index is missing, unreadable, or not the published one.
        """
        index = self._recent.get(shard)
        if index is not None:
            self._recent.move_to_end(shard)
            return index
        index = self._ahead.take(shard) if shard in self._ahead else self._load(shard)
        self._recent[shard] = index
        self._bytes += index.nbytes
        while self._bytes > self._max_bytes and len(self._recent) > 1:
            _, oldest = self._recent.popitem(last=False)
            self._bytes -= oldest.nbytes
        return index

    def begin(self, shards: Iterable[int]) -> None:
        """Start to read the indexes of `shards` on threads."""
        for shard in shards:
            if shard not in self._recent:
                self._ahead.begin(shard, self._load)

    def read_ahead(self, shards: Sequence[int]) -> None:
        """Do the same as `begin`, and drop other indexes that were begun but not requested."""
        self._ahead.forget_all_but(shards)
        self.begin(shards)

    def _load(self, shard: int) -> ShardIndex:
        listed = ShardInfo(**self._shards.slice(shard, 1).to_pylist()[0])
        index = read_index(self._location, self._names, listed, self._num_classes, sources=False)
        if not self._keep_sample_hashes:
            index.drop_sample_hashes()
        return index


def read_index(
    location: Location,
    names: FileNames,
    listed: ShardInfo,
    num_classes: int,
    *,
    sources: bool = True,
) -> ShardIndex:
    """Read the index of one shard, with all its hashes.

    Args:
        location: The location of the set.
        names: How the files of the set are named.
        listed: The shard's row in `shards.parquet`.
        num_classes: The number of classes of the set; 0 if it has none.
        sources: Whether to read the sources of the samples now, too. If not, the file is read again
            when they are asked for.

    Raises:
        ShardError: The index is missing, unreadable, or not the published one.
    """
    name = names.index(listed)
    where = f"{location}/{name}"
    try:
        data = location.read(name, max_index_bytes(listed.samples))
    except FileNotFoundError as error:
        raise ShardError(f"{where}: missing; {REMEDY}") from error
    if (sha256 := sha256_hex(data)) != listed.index_sha256:
        raise ShardError(f"{where}: sha256 differs from shards.parquet; {REMEDY}")
    whole = None if sources else partial(read_index, location, names, listed, num_classes)
    index = ShardIndex.decode(data, where, sha256=sha256, whole=whole)
    index.check_listed(listed, num_classes, where)
    return index
