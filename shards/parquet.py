"""Parquet to and from bytes, with every setting that shows in the bytes fixed.

The same table gives the same bytes wherever the same pyarrow writes it; the file names its writer's
version, so another pyarrow gives other bytes.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import ShardError


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


def decode_parquet(data: bytes, schema: pa.Schema, where: str) -> pa.Table:
    """The table in a Parquet file, with the file's own metadata on its schema.

    Args:
        data: the whole file.
        schema: the columns and types expected; its metadata is not compared.
        where: names the file in errors.

    Raises:
        ShardError: not Parquet, damaged, or of other columns.
    """
    try:
        # No threads: this runs in forked loader workers, where pyarrow's pools do not exist.
        table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ShardError(
            f"{where}: not a readable Parquet file ({' '.join(str(error).split())}); "
            "run 'perceiver preprocess' again"
        ) from error
    if not table.schema.equals(schema, check_metadata=False):
        raise ShardError(
            f"{where}: has the columns {', '.join(table.schema.names)} "
            f"instead of {', '.join(schema.names)}, or other types; "
            "run 'perceiver preprocess' again"
        )
    return table
