"""The tables that hold sources, and their digests."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import SPLITS

SPLIT_TYPE = pa.dictionary(pa.int8(), pa.string())
PART_TYPE = pa.struct(
    [
        ("field", pa.string()),
        ("path", pa.binary()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("size", pa.int64()),
        ("mtime", pa.string()),
        ("address", pa.binary()),
    ]
)
PARTS_TYPE = pa.list_(PART_TYPE)
"""The files of a sample. `address` is set if a file's address holds a secret, which `path` must not
hold. It is kept in memory only.
"""
SOURCE_SCHEMA = pa.schema(
    [
        ("split", SPLIT_TYPE),
        ("uri", pa.binary()),
        ("target", pa.int64()),
        ("row", pa.int64()),
        ("values_digest", pa.binary()),
        ("values_mtime", pa.string()),
        ("parts", PARTS_TYPE),
    ]
)
REFUSED_SCHEMA = pa.schema([("uri", pa.binary()), ("split", pa.string()), ("reason", pa.string())])
# A sample before it gets its URI and the number of its label.
FOUND_SCHEMA = pa.schema(
    [
        ("split", pa.int8()),  # index in SPLITS
        ("name", pa.binary()),
        ("label", pa.binary()),
        ("group", pa.binary()),  # of `data.group`, or null
        ("row", pa.int64()),
        ("values_digest", pa.binary()),
        ("values_mtime", pa.string()),
        ("parts", PARTS_TYPE),
    ]
)
BATCH_ROWS = 1 << 15
RUN_ROWS = 1 << 17
"""A table of listed rows has about so many."""


class Rows:
    """Collects rows that come one at a time, as Arrow batches.

    Args:
        schema: The schema of the table.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._pending: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []

    def append(self, *values: Any) -> None:
        """Add one row. The values are in the order of the schema."""
        self._pending.append(values)
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._pending, strict=True)
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, self.schema, strict=True)
        ]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
        self._pending.clear()

    def full(self) -> Iterator[pa.Table]:
        """Yield the rows so far as a table, and drop them, once there are many."""
        if len(self._batches) * BATCH_ROWS >= RUN_ROWS:
            yield pa.Table.from_batches(self._batches, self.schema)
            self._batches = []

    def rest(self) -> Iterator[pa.Table]:
        """Yield the rows that are left as a table, if there are any."""
        if self._pending:
            self._flush()
        if self._batches:
            yield pa.Table.from_batches(self._batches, self.schema)
            self._batches = []


def in_runs(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield batches as tables of about `RUN_ROWS` rows."""
    some: list[pa.RecordBatch] = []
    for batch in batches:
        some.append(batch)
        if sum(each.num_rows for each in some) >= RUN_ROWS:
            yield pa.Table.from_batches(some)
            some = []
    if some:
        yield pa.Table.from_batches(some)


def without_addresses(table: pa.Table) -> pa.Table:
    """Return the table of samples without the addresses that hold secrets, for writing."""
    column = one_chunk(table["parts"])
    flat = column.flatten()
    fields = [field for field in PART_TYPE if field.name != "address"]
    structs = pa.StructArray.from_arrays(
        [flat.field(field.name) for field in fields], fields=fields
    )
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    offsets = pa.array(np.r_[0, np.cumsum(lengths)].astype(np.int32))
    index = table.schema.get_field_index("parts")
    return table.set_column(index, "parts", pa.ListArray.from_arrays(offsets, structs))


def addresses_of(table: pa.Table) -> list[str | None]:
    """Return the addresses that hold secrets, for all files of a table's samples in their order."""
    flat = one_chunk(table["parts"]).flatten()
    column = flat.field(PART_TYPE.get_field_index("address"))
    return [None if value is None else os.fsdecode(value) for value in column.to_pylist()]


def first_refused(refused: pa.Table) -> str:
    """Return the first three refused sources and their reasons, as the end of an error's text."""
    examples = [
        f"{row['uri'].decode(errors='replace')!r}: {row['reason']}"
        for row in refused.slice(0, 3).to_pylist()
    ]
    return f", for example {'; '.join(examples)}" if examples else ""


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array."""
    if isinstance(column, pa.Array):
        return column
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # it has no chunks, or is too large for one
        return (
            pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], column.type)
        )
    return combined


def concat(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Concatenate tables of one schema. The result is empty if there are none."""
    tables = [table.cast(schema) if table.schema != schema else table for table in tables]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def split_column(codes: np.ndarray) -> pa.Array:
    """Turn indices in `SPLITS` into a column of names."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int8)), pa.array(SPLITS))


def with_split(names: pa.Array, split: str) -> pa.Array:
    """Return `SPLIT/NAME` for each name."""
    return pc.binary_join_element_wise(pa.scalar(split.encode(), pa.binary()), names, b"/")


def binary_parts(column: pa.Array) -> tuple[np.ndarray, memoryview]:
    """Return the offsets (int32 `[rows + 1]`) and bytes of a binary or text array without nulls."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4)
    return ends, memoryview(data if data is not None else b"")
