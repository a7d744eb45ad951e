"""Large Parquet files that are read by row group: check how many bytes one page unpacks to.

A file that is read in batches of rows may be larger than memory. Only one page and one batch of
its values must fit.
"""

import io
from collections.abc import Collection
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from shards.parquet_pages import pages, read_footer, refused

MAX_RATIO = 16

_SLACK_BYTES, _MOST_PACKED = 16 << 20, 1 << 15
"""A page may unpack to at most `_SLACK_BYTES` plus `_MOST_PACKED` times its own size: a zstd block
of 128 KiB takes at least 4 bytes. A page that declares more is false or not worth the memory."""

_FREE_ROWS, _ROWS_PER_BYTE = 1 << 20, 1 << 10
"""A file may have at most `_FREE_ROWS` plus `_ROWS_PER_BYTE` rows for each of its bytes. An empty
row takes no bytes in the file, but it takes memory once it is read."""


def open_parquet(file: BinaryIO, where: str) -> pq.ParquetFile:
    """Open a Parquet file after a check of its footer.

    Args:
        file: The file, opened for reading and seekable.
        where: The name of the file in errors.

    Raises:
        ShardError: The file is not Parquet, its footer is damaged, or it has far more rows than
            bytes.
    """
    try:
        rows, groups = read_footer(file)
        file.seek(0)
        parquet = pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise refused(where, f"not a readable Parquet file ({reason})") from error
    about = parquet.metadata
    if rows != about.num_rows or len(groups) != about.num_row_groups:
        raise refused(where, "its footer is ambiguous")
    size = file.seek(0, io.SEEK_END)
    if rows > (most := _FREE_ROWS + _ROWS_PER_BYTE * size):
        raise refused(where, f"{rows} rows in {size} bytes, and at most {most} are expected")
    return parquet


def largest_page(
    file: BinaryIO,
    metadata: pq.FileMetaData,
    group: int,
    columns: Collection[str],
    where: str,
    *,
    max_bytes: int,
) -> int:
    """Return the unpacked size of the largest page of some columns in a row group, in bytes.

    Every page header is read, and nothing is unpacked.

    Args:
        file: The file. Its position changes.
        metadata: The metadata of the file.
        group: The index of the row group.
        columns: The names of the columns.
        where: The name of the file in errors.
        max_bytes: The most bytes that a page may take. A page that is large in the file may take
            `MAX_RATIO` times its size there, because a large value needs a large page. A page that
            is small in the file may take no more than compression can achieve.

    Raises:
        ShardError: A page would take more, or the file is damaged.
    """
    about = metadata.row_group(group)
    size, largest = file.seek(0, io.SEEK_END), 0
    for number in range(about.num_columns):
        chunk = about.column(number)
        path = chunk.path_in_schema
        if not any(path == name or path.startswith(f"{name}.") for name in columns):
            continue
        named = f"{where}: column {path!r}"
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            start = min(start, chunk.dictionary_page_offset)
        stop = start + chunk.total_compressed_size
        if chunk.num_values == 0:
            continue
        if chunk.num_values < 0 or not 0 < start <= stop <= size:
            raise refused(named, "it lies outside the file")
        for page in pages(file, start, stop, chunk.num_values, named):
            largest = max(largest, page.unpacked)
            most = min(
                max(max_bytes, MAX_RATIO * page.packed),
                _SLACK_BYTES + _MOST_PACKED * page.packed,
            )
            if page.unpacked > most:
                raise refused(
                    named,
                    f"a page of {page.packed} bytes would unpack into {page.unpacked}, more than "
                    f"{most}",
                )
    return largest
