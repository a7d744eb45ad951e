"""Reads rows of Parquet files in batches that fit into memory."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from shards.parquet_groups import largest_page

MAX_PAGE_BYTES = 256 << 20
MAX_ROWS_BYTES = 1 << 30
"""The most bytes of a batch, if every value were as large as the largest page."""


def group_batches(
    file: BinaryIO, parquet: pq.ParquetFile, group: int, names: list[str], most: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one row group in batches that fit into memory.

    Args:
        file: The Parquet file, open for reading.
        parquet: The same file, opened by pyarrow.
        group: The index of the row group.
        names: The names of the columns.
        most: The largest number of rows in a batch.

    Raises:
        ShardError: A page would unpack to more than `MAX_PAGE_BYTES`.
    """
    largest = largest_page(file, parquet.metadata, group, names, "it", max_bytes=MAX_PAGE_BYTES)
    # A value is at most as large as a page. A dictionary's value may repeat in every row.
    rows = max(1, min(most, MAX_ROWS_BYTES // max(largest, 1)))
    yield from parquet.iter_batches(rows, row_groups=[group], columns=names, use_threads=False)
