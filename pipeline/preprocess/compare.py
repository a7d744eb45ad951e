"""Compares all sources with an earlier ledger, partition by partition."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.preprocess.changes import find_changes
from pipeline.preprocess.hashing import SourceHasher
from pipeline.preprocess.ledger import LEDGER_SCHEMA, Ledger
from pipeline.preprocess.sources import SourceChunk, SourceTable, StoredTable
from pipeline.preprocess.sources.digests import hash_column
from pipeline.preprocess.sources.partitions import (
    by_hash,
    count_partitions,
    dealt,
    hashes,
    loaded,
    released,
    transposed,
)
from pipeline.preprocess.sources.tables import SOURCE_SCHEMA

_CHUNK, _ROW = "chunk", "place"
_ORIGIN = [_CHUNK, _ROW]
STALE_SCHEMA = pa.schema([("uri", pa.binary()), ("shard", pa.int64())])
_WITH_ORIGIN = pa.schema([*SOURCE_SCHEMA, (_CHUNK, pa.int64()), (_ROW, pa.int64())])


@dataclass(frozen=True)
class SetChanges:
    """The work that brings a set up to date with its sources.

    Attributes:
        to_decode: The sources to decode, in their order: added, changed, or tried again.
        stale: The `uri` and `shard` of each source whose samples must be removed, because the
            source was changed, tried again or deleted.
        num_unchanged: The number of the other sources.
        named: The URIs of the sources that the earlier quarantine names.
        named_unchanged: Those of them that are unchanged.
        named_failed: Those of the earlier sources that gave no sample.
    """

    to_decode: tuple[SourceChunk, ...]
    stale: tuple[StoredTable, ...]
    num_unchanged: int
    named: pa.Array
    named_unchanged: pa.Array
    named_failed: pa.Array

    @property
    def num_to_decode(self) -> int:
        """The number of sources to decode."""
        return sum(chunk.stored.num_rows for chunk in self.to_decode)

    @property
    def num_stale(self) -> int:
        """The number of sources whose samples must be removed."""
        return sum(table.num_rows for table in self.stale)

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return bool(self.to_decode or self.stale)

    def stale_shards(self) -> pa.Array:
        """Return the numbers of the shards that lose samples, int64, each once."""
        found = [pc.unique(table.load(["shard"])["shard"]) for table in self.stale]
        return pc.unique(pa.chunked_array(found, pa.int64()))

    def add_to(self, hashed: Any) -> None:
        """Add what is decoded and what is removed to a hash of `hashlib`."""
        for name, tables in (
            ("uri", [chunk.stored for chunk in self.to_decode]),
            ("uri", self.stale),
            ("shard", self.stale),
        ):
            rows = sum(table.num_rows for table in tables)
            pieces = (piece for table in tables for piece in table.load([name])[name].chunks)
            hash_column(hashed, name, rows, pieces)


def compare(
    ledger: Ledger, source_table: SourceTable, again: pa.Array, quarantined: pa.ChunkedArray
) -> SetChanges:
    """Find what has changed among the sources; see `find_changes`.

    Sources and ledger are dealt out by the hash of the names, so that each source meets its earlier
    state in one partition.

    Args:
        ledger: The sources that the set was made from.
        source_table: The sources that exist now.
        again: The URIs to try again, whatever their state.
        quarantined: The URIs in the set's quarantine, as text.
    """
    store = source_table.store
    chunks = [chunk.stored for chunk in source_table.chunks]
    count = count_partitions([*chunks, *ledger.tables])
    with_origin = ((chunk, number, count) for number, chunk in enumerate(chunks))
    now = transposed(store.run(_with_origin, with_origin), count)
    before = by_hash(store, ledger.tables, "uri", count)
    hasher, names = SourceHasher.of(source_table), quarantined.combine_chunks()
    calls = (
        (*pair, again, hasher, names) for pair in zip(released(now), released(before), strict=True)
    )
    decode: list[StoredTable] = []
    stale: list[StoredTable] = []
    facts: list[_Facts] = []
    for (to_decode, dropped), found in store.run(_compare, calls):
        decode += [to_decode] if to_decode.num_rows else []
        stale += [dropped] if dropped.num_rows else []
        facts.append(found)
    columns = zip(*((f.named, f.named_unchanged, f.named_failed) for f in facts), strict=True)
    return SetChanges(
        tuple(_in_order(source_table, decode, len(chunks))),
        tuple(stale),
        sum(each.num_unchanged for each in facts),
        *map(pa.concat_arrays, columns),
    )


@dataclass(frozen=True)
class _Facts:
    num_unchanged: int
    named: pa.Array
    named_unchanged: pa.Array
    named_failed: pa.Array


def _with_origin(chunk: StoredTable, number: int, count: int) -> Iterator[pa.Table]:
    """Deal the rows of a chunk out by name, as a step, with the chunk and the row they are from."""
    table = chunk.load()
    rows = np.arange(table.num_rows)
    table = table.append_column(_CHUNK, pa.array(np.full_like(rows, number)))
    table = table.append_column(_ROW, pa.array(rows))
    yield from dealt(table, hashes(table["uri"], of_uris=True) % count, count)


def _compare(
    now: list[StoredTable],
    before: list[StoredTable],
    again: pa.Array,
    hasher: SourceHasher,
    names: pa.Array,
) -> Generator[pa.Table, None, _Facts]:
    """Compare a partition, as a step. Yield the sources to decode, and the stale ones."""
    table = loaded(now, _WITH_ORIGIN)
    # In the order of all sources, in which they lie together by split, and rows increase.
    order = np.lexsort((table[_ROW].to_numpy(), table[_CHUNK].to_numpy()))
    table = table.take(pa.array(order))
    ledger = loaded(before, LEDGER_SCHEMA)
    changes = find_changes(ledger, table, again, hasher)
    yield changes.to_decode
    yield changes.stale.cast(STALE_SCHEMA)
    failed = ledger["uri"].filter(pc.is_null(ledger["shard"])).combine_chunks()
    return _Facts(
        len(changes.unchanged),
        _named(table["uri"].combine_chunks(), names),
        _named(changes.unchanged, names),
        _named(failed, names),
    )


def _named(uris: pa.Array, names: pa.Array) -> pa.Array:
    """Return the URIs whose text is among the names."""
    return uris.filter(pc.is_in(uri_texts(uris), value_set=names))


def uri_texts(uris: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return URIs as the quarantine's text: bytes that are not UTF-8 become backslash escapes."""
    try:
        texts = uris.cast(pa.string())
        return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    except pa.ArrowInvalid:
        escaped = (
            uri.decode("utf-8", "surrogateescape").encode(errors="backslashreplace").decode()
            for uri in uris.to_pylist()
        )
        return pa.array(escaped, pa.string())


def _in_order(
    source_table: SourceTable, tables: Sequence[StoredTable], num_chunks: int
) -> list[SourceChunk]:
    """Put the sources to decode into the order of all sources."""
    store = source_table.store
    if not tables:
        return []
    count = count_partitions(tables)
    calls = ((table, num_chunks, count) for table in tables)
    ranges = transposed(store.run(_deal_by_chunk, calls), count)
    made = store.run(_sort, ((some,) for some in released(ranges) if some))
    return [SourceChunk(found[0], counts) for found, counts in made]


def _deal_by_chunk(table: StoredTable, num_chunks: int, count: int) -> Iterator[pa.Table]:
    rows = table.load()
    yield from dealt(rows, rows[_CHUNK].to_numpy() * count // num_chunks, count)


def _sort(tables: list[StoredTable]) -> Generator[pa.Table, None, tuple[int, ...]]:
    table = pa.concat_tables([each.load() for each in tables])
    order = np.lexsort((table[_ROW].to_numpy(), table[_CHUNK].to_numpy()))
    ordered = table.take(pa.array(order)).drop_columns(_ORIGIN)
    yield ordered
    return SourceChunk.counts_of(ordered)
