"""The indexes of a split's shards, read when first needed."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from shards.ahead import Ahead
from shards.digests import sha256_hex
from shards.errors import ShardError
from shards.index import ShardIndex, index_name
from shards.location import Location

REMEDY = "run 'perceiver verify', then 'perceiver preprocess' again"


class IndexCache:
    """Holds the most recently used indexes, each checked against `shards.parquet`.

    Args:
        location: of the set.
        numbers: of the shards in their set, int64 [shards].
        sha256s: of their indexes, Arrow strings [shards].
        max_bytes: of the indexes held; the one read last is held in any case.
        num_threads: that read indexes ahead.
    """

    def __init__(
        self,
        location: Location,
        numbers: np.ndarray,
        sha256s: pa.ChunkedArray,
        max_bytes: int,
        num_threads: int,
    ) -> None:
        self._location = location
        self._numbers = numbers
        self._sha256s = sha256s
        self._max_bytes = max_bytes
        self._bytes = 0
        self._recent: OrderedDict[int, ShardIndex] = OrderedDict()
        self._ahead: Ahead[int, ShardIndex] = Ahead(num_threads)

    def __getitem__(self, shard: int) -> ShardIndex:
        """Raises ShardError: missing, unreadable, or not the one that was published."""
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
        """Starts reading the indexes of `shards` on threads."""
        for shard in shards:
            if shard not in self._recent:
                self._ahead.begin(shard, self._load)

    def read_ahead(self, shards: Sequence[int]) -> None:
        """As `begin`, and lets go what was begun of others and not asked for."""
        self._ahead.forget_all_but(shards)
        self.begin(shards)

    def _load(self, shard: int) -> ShardIndex:
        name = index_name(int(self._numbers[shard]))
        where = f"{self._location}/{name}"
        try:
            data = self._location.read(name)
        except FileNotFoundError as error:
            raise ShardError(f"{where}: missing; {REMEDY}") from error
        if sha256_hex(data) != self._sha256s[shard].as_py():
            raise ShardError(f"{where}: sha256 differs from shards.parquet; {REMEDY}")
        index = ShardIndex.decode(data, where)
        # What is read from afar by ranges is checked sample by sample.
        index.drop_hashes(of_samples=self._location.folder is not None)
        return index
