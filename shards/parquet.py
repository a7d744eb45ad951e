"""Parquet to and from bytes, with fixed values for all settings that affect the bytes.

The same table gives the same bytes with the same version of pyarrow on any machine. The file
contains the version of pyarrow, so another version gives other bytes.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from shards.parquet_pages import check_parquet, dictionary_columns, refused, unpacked_bytes

_SLACK_BYTES, _MAX_RATIO = 16 << 20, 256
"""A file may unpack to at most `_SLACK_BYTES` plus `_MAX_RATIO` times its own size."""


def encode_parquet(table: pa.Table) -> bytes:
    """Encode `table` as one Parquet file. The metadata of its schema is kept."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.combine_chunks(),
        sink,
        version="2.6",
        compression="zstd",
        compression_level=3,
    )
    return sink.getvalue().to_pybytes()


def decode_parquet(
    data: bytes,
    schema: pa.Schema,
    where: str,
    *,
    max_rows: int | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Decode a Parquet file whose schema is known.

    The schema and the unpacked size are checked before anything is unpacked. The unpacked size must
    be at most a fixed multiple of the file's size.

    Args:
        data: The whole file.
        schema: The expected columns and types; its metadata is not compared.
        where: The name of the file in errors.
        max_rows: The most rows that the file may have. The default is its size in bytes.
        columns: The columns to read; None for all. Others are not unpacked, and not checked.

    Returns:
        The table, with the file's own metadata in its schema.

    Raises:
        ShardError: The file is not Parquet, is damaged, has other columns or too many rows, or
            would unpack to too many bytes.
    """
    limit = _SLACK_BYTES + _MAX_RATIO * len(data)
    rows = len(data) if max_rows is None else max_rows
    metadata = check_parquet(data, where, max_bytes=limit, max_rows=rows, columns=columns)
    try:
        found = metadata.schema.to_arrow_schema()
        if not found.equals(schema, check_metadata=False):
            raise refused(
                where,
                f"has the columns {', '.join(found.names)} instead of {', '.join(schema.names)}, "
                "or other types",
            )
        # No threads: this also runs in forked loader workers, which lack pyarrow's thread pools.
        table = pq.ParquetFile(
            pa.BufferReader(data),
            metadata=metadata,
            pre_buffer=False,
            read_dictionary=dictionary_columns(metadata),
        ).read(columns=columns, use_threads=False)
        if unpacked_bytes(table) > limit:
            raise refused(where, f"it would unpack into more than {limit} bytes")
        wanted = schema if columns is None else pa.schema(map(schema.field, columns))
        table = table.cast(wanted.with_metadata(table.schema.metadata))
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise refused(
            where, f"not a readable Parquet file ({' '.join(str(error).split())})"
        ) from error
    return table
