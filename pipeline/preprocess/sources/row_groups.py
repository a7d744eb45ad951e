"""Rows of Parquet files, of which no batch and no page is larger than memory holds."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from shards.parquet_groups import largest_page

MAX_PAGE_BYTES = 256 << 20
MAX_ROWS_BYTES = 1 << 30
"""Of the values of a batch, were each as large as the largest page."""


def group_batches(
    file: BinaryIO, parquet: pq.ParquetFile, group: int, names: list[str], most: int
) -> Iterator[pa.RecordBatch]:
    """The rows of one row group, as many at a time as fit into memory, and no more than `most`.

    Raises:
        ShardError: a page of it would unpack into too much.
    """
    largest = largest_page(file, parquet.metadata, group, names, "it", max_bytes=MAX_PAGE_BYTES)
    # A value is no larger than a page; a dictionary's may be repeated in every row.
    rows = max(1, min(most, MAX_ROWS_BYTES // max(largest, 1)))
    yield from parquet.iter_batches(rows, row_groups=[group], columns=names, use_threads=False)
