"""Deals rows out to partitions by the hash of a name, so that equal names meet in one of them."""

import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.preprocess.sources.stored_tables import StoredTable, TableStore
from pipeline.preprocess.sources.tables import BATCH_ROWS, binary_parts, concat, one_chunk

ROWS = 1 << 19
"""A partition has about so many rows. A step needs about 1 KB of memory for each."""
MANY_PARTITIONS = 512
"""Partitions get larger instead of more: dealing out makes a table for each pair of them."""
MOST_ROWS = 1 << 22
MOST_BYTES = 1 << 30
"""A column of a partition fits into one Arrow array, which holds 2 GiB."""


def rows_of_partition(num_rows: int) -> int:
    """Return how many rows a partition has if there are so many rows in all."""
    return min(max(ROWS, num_rows // MANY_PARTITIONS), MOST_ROWS)


def count_partitions(tables: Iterable[StoredTable]) -> int:
    """Return into how many partitions tables are dealt out. It is 1 for a small source."""
    tables = list(tables)
    rows = sum(table.num_rows for table in tables)
    size = sum(table.num_bytes for table in tables)
    return max(1, -(-rows // rows_of_partition(rows)), -(-size // MOST_BYTES))


def bundles(tables: Sequence[StoredTable], rows: int) -> Iterator[list[StoredTable]]:
    """Yield tables in groups of about so many rows, and of at most `MOST_BYTES`."""
    together: list[StoredTable] = []
    total = size = 0
    for table in tables:
        if together and (total + table.num_rows > rows or size + table.num_bytes > MOST_BYTES):
            yield together
            together, total, size = [], 0, 0
        together.append(table)
        total += table.num_rows
        size += table.num_bytes
    if together:
        yield together


def by_hash(
    store: TableStore, tables: Sequence[StoredTable], column: str, count: int
) -> list[list[StoredTable]]:
    """Deal rows out by the hash of a column of bytes.

    Args:
        store: Runs the work.
        tables: The tables.
        column: The column. In a URI `SPLIT/NAME`, only the name counts.
        count: The number of partitions.

    Returns:
        For each partition its tables, in the order of the given ones.
    """
    if count == 1:
        return [list(tables)]
    total = sum(table.num_rows for table in tables)
    calls = ((some, column, count) for some in bundles(tables, rows_of_partition(total)))
    return transposed(store.run(_deal_by_hash, calls), count)


def transposed(
    results: Iterable[tuple[list[StoredTable], Any]], count: int
) -> list[list[StoredTable]]:
    """Return for each of `count` places the tables that lie there in each result, if not empty."""
    dealt: list[list[StoredTable]] = [[] for _ in range(count)]
    for pieces, _ in results:
        for place, piece in zip(dealt, pieces, strict=True):
            if piece.num_rows:
                place.append(piece)
    return dealt


def released(lists: list[list[StoredTable]]) -> Iterator[list[StoredTable]]:
    """Yield the lists in order, and drop each, so that tables can go once they were used."""
    lists.reverse()
    while lists:
        yield lists.pop()


def _deal_by_hash(
    tables: list[StoredTable], column: str, count: int
) -> Generator[pa.Table, None, None]:
    table = pa.concat_tables([table.load() for table in tables])
    yield from dealt(table, hashes(table[column], of_uris=column == "uri") % count, count)


def dealt(table: pa.Table, places: np.ndarray, count: int) -> Iterator[pa.Table]:
    """Yield the rows of each place, in their order.

    Args:
        table: The rows.
        places: The place of each row, below `count`, `[rows]`.
        count: The number of places.
    """
    if count == 1:
        yield table
        return
    order = np.argsort(places, kind="stable")
    ends = np.searchsorted(places[order], np.arange(count + 1))
    for start, stop in pairwise(ends.tolist()):
        yield table.take(pa.array(order[start:stop]))


def hashes(names: pa.ChunkedArray, *, of_uris: bool = False) -> np.ndarray:
    """Return the CRC-32 of each name, uint32 `[rows]`.

    Args:
        names: The names, binary, without nulls.
        of_uris: Whether these are URIs, of which the part after the first slash counts.
    """
    found = np.empty(len(names), np.uint32)
    crc = zlib.crc32
    for begin in range(0, len(names), BATCH_ROWS):
        offsets, data = binary_parts(one_chunk(names.slice(begin, BATCH_ROWS)))
        raw = bytes(data[offsets[0] : offsets[-1]])
        rows = pairwise((offsets - offsets[0]).tolist())
        if of_uris:
            values = [
                crc(raw[raw.find(b"/", start, end) + 1 or start : end]) for start, end in rows
            ]
        else:
            values = [crc(raw[start:end]) for start, end in rows]
        found[begin : begin + len(values)] = values
    return found


def loaded(tables: Sequence[StoredTable], schema: pa.Schema) -> pa.Table:
    """Load the columns of a schema from tables, and concatenate them."""
    return concat([table.load(schema.names) for table in tables], schema)
