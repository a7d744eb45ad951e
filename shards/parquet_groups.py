"""Large Parquet files read group by group: how much one of their pages unpacks into.

Of a file that is read a batch of rows at a time, all of it may well be larger than memory. What
must fit is one page, and a batch of its values.
"""

import io
from collections.abc import Collection
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from shards.parquet_pages import pages, read_footer, refused

MAX_RATIO = 16

_SLACK_BYTES, _MOST_PACKED = 16 << 20, 1 << 15
"""A page may unpack into so many bytes, and so many times its own size: zstd's blocks of 128 KiB
take 4 bytes at least. One that declares more lies, or is not worth the memory."""

_FREE_ROWS, _ROWS_PER_BYTE = 1 << 20, 1 << 10
"""A file may have so many rows, and so many for each of its bytes: a row that has nothing of its
own takes no bytes, and yet memory once it is read."""


def open_parquet(file: BinaryIO, where: str) -> pq.ParquetFile:
    """A Parquet file whose footer pyarrow can take.

    Raises:
        ShardError: it is none, its footer is damaged, or it has far more rows than bytes.
    """
    try:
        rows, groups = read_footer(file)
        file.seek(0)
        parquet = pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise refused(where, f"not a readable Parquet file ({told})") from error
    about = parquet.metadata
    if rows != about.num_rows or len(groups) != about.num_row_groups:
        raise refused(where, "its footer can be read in two ways")
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
    """What the largest page of some columns of a row group unpacks into, in bytes.

    Every header is read, nothing is unpacked.

    Args:
        file: the file, whose position is moved.
        metadata: of the file.
        group: number of the row group.
        columns: names of columns.
        where: names the file in errors.
        max_bytes: that a page may take; one that is large in the file may take `MAX_RATIO` times
            its size there, since pages of large values have no bound in themselves, and one that
            is small there no more than any compression could have made so small.

    Raises:
        ShardError: a page would take more, or the file is damaged.
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
