"""Parquet to and from bytes, with every setting that shows in the bytes fixed.

The same table gives the same bytes wherever the same pyarrow writes it; the file names its writer's
version, so another pyarrow gives other bytes.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from shards.parquet_pages import check_parquet, dictionary_columns, refused, unpacked_bytes

_SLACK_BYTES, _MAX_RATIO = 16 << 20, 256
"""A file may unpack into so many bytes, and so many times its own size."""


def encode_parquet(table: pa.Table) -> bytes:
    """`table` as one Parquet file; its schema's metadata is kept."""
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
    data: bytes, schema: pa.Schema, where: str, *, max_rows: int | None = None
) -> pa.Table:
    """The table in a Parquet file, with the file's own metadata on its schema.

    Nothing is unpacked before the file has proven to be of this schema and to unpack into no more
    than a small multiple of its own size.

    Args:
        data: the whole file.
        schema: the columns and types expected; its metadata is not compared.
        where: names the file in errors.
        max_rows: that it may have; default as many as it has bytes.

    Raises:
        ShardError: not Parquet, damaged, of other columns, of more rows, or it would unpack into
            far more than it is.
    """
    limit = _SLACK_BYTES + _MAX_RATIO * len(data)
    rows = len(data) if max_rows is None else max_rows
    metadata = check_parquet(data, where, max_bytes=limit, max_rows=rows)
    try:
        found = metadata.schema.to_arrow_schema()
        if not found.equals(schema, check_metadata=False):
            raise refused(
                where,
                f"has the columns {', '.join(found.names)} instead of {', '.join(schema.names)}, "
                "or other types",
            )
        # No threads: this runs in forked loader workers, where pyarrow's pools do not exist.
        table = pq.ParquetFile(
            pa.BufferReader(data),
            metadata=metadata,
            pre_buffer=False,
            read_dictionary=dictionary_columns(metadata),
        ).read(use_threads=False)
        if unpacked_bytes(table) > limit:
            raise refused(where, f"it would unpack into more than {limit} bytes")
        table = table.cast(schema.with_metadata(table.schema.metadata))
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise refused(
            where, f"not a readable Parquet file ({' '.join(str(error).split())})"
        ) from error
    return table
