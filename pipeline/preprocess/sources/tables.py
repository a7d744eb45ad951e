"""The tables that sources are kept in, and digests of them."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
"""A sample's files. Their `address` is where one lies, if its path alone does not tell since that
holds a secret; it is kept in memory only."""
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
# A sample before it has its split's name in front and its label's number.
FOUND_SCHEMA = pa.schema(
    [
        ("split", pa.int8()),  # place in SPLITS
        ("name", pa.binary()),
        ("label", pa.binary()),
        ("row", pa.int64()),
        ("values_digest", pa.binary()),
        ("values_mtime", pa.string()),
        ("parts", PARTS_TYPE),
    ]
)
BATCH_ROWS = 1 << 15


class Rows:
    """Rows that come one at a time, kept as Arrow.

    Args:
        schema: of the table.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._pending: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []
        self.num_rows = 0

    def append(self, *values: Any) -> None:
        """Add one row, its values in the schema's order."""
        self._pending.append(values)
        self.num_rows += 1
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._pending, strict=True)
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, self.schema, strict=True)
        ]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
        self._pending.clear()

    def table(self) -> pa.Table:
        """All rows so far."""
        if self._pending:
            self._flush()
        return pa.Table.from_batches(self._batches, self.schema)


@dataclass(frozen=True)
class SourceScan:
    """What one place holds.

    Attributes:
        samples: of `FOUND_SCHEMA`.
        refused: of `REFUSED_SCHEMA`, `uri` still without its split in front.
        root: folder or URL that the parts' paths lie below, with what gives access to it.
        confined: whether nothing but what lies below may be read, since paths come from the
            sources themselves.
        values: the listing that holds values in line, or None.
        label_names: of `multi_label`, the names seen in each split.
        numbered: whether labels that are all numbers are sorted as such; folders' names are text.
    """

    samples: pa.Table
    refused: pa.Table
    root: str
    values: Any = None
    label_names: dict[str, set[str]] = field(default_factory=dict)
    numbered: bool = True
    confined: bool = True


def without_addresses(table: pa.Table) -> pa.Table:
    """The table of samples as it may be written: without the addresses that hold secrets."""
    column = one_chunk(table["parts"])
    flat = column.flatten()
    fields = [field for field in PART_TYPE if field.name != "address"]
    structs = pa.StructArray.from_arrays(
        [flat.field(field.name) for field in fields], fields=fields
    )
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    offsets = pa.array(np.r_[0, np.cumsum(lengths)].astype(np.int32))
    place = table.schema.get_field_index("parts")
    return table.set_column(place, "parts", pa.ListArray.from_arrays(offsets, structs))


def addresses_of(table: pa.Table) -> list[str | None]:
    """The addresses that hold secrets, of all files of a table's samples in their order."""
    flat = one_chunk(table["parts"]).flatten()
    column = flat.field(PART_TYPE.get_field_index("address"))
    return [None if value is None else os.fsdecode(value) for value in column.to_pylist()]


def first_refused(refused: pa.Table) -> str:
    """The first things refused, and why, as the end of an error's text."""
    told = [
        f"{row['uri'].decode(errors='replace')!r}: {row['reason']}"
        for row in refused.slice(0, 3).to_pylist()
    ]
    return f", for example {'; '.join(told)}" if told else ""


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array."""
    if isinstance(column, pa.Array):
        return column
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # of no chunks, or too large for one
        return (
            pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], column.type)
        )
    return combined


def concat(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """One table of all, of one schema; none gives an empty one."""
    tables = [table.cast(schema) if table.schema != schema else table for table in tables]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def split_column(codes: np.ndarray) -> pa.Array:
    """Places in `SPLITS` as the column of their names."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int8)), pa.array(SPLITS))


def with_split(names: pa.Array, split: str) -> pa.Array:
    """`SPLIT/NAME` for each name."""
    return pc.binary_join_element_wise(pa.scalar(split.encode(), pa.binary()), names, b"/")


def binary_parts(column: pa.Array) -> tuple[np.ndarray, memoryview]:
    """Offsets int32 `[rows + 1]` and the bytes of a binary or string array without nulls."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4)
    return ends, memoryview(data if data is not None else b"")


def table_digest(tables: Sequence[pa.Table]) -> str:
    """sha256 (hex) of the rows in their order, the same however they are cut into chunks."""
    hashed = hashlib.sha256()
    for table in tables:
        for name in table.column_names:
            hashed.update(f"{name}\0{table.num_rows}\0".encode())
            for chunk in _even_chunks(table[name]):
                for piece in _bytes_of(chunk):
                    hashed.update(piece)
    return hashed.hexdigest()


def _even_chunks(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """Pieces of a fixed number of rows, so that the digest doesn't see how Arrow cut them."""
    for start in range(0, len(column), BATCH_ROWS):
        yield one_chunk(column.slice(start, BATCH_ROWS))


def _bytes_of(array: pa.Array) -> Iterator[bytes | memoryview]:
    """Nulls, lengths and values of an array, as bytes."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    yield np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes()
    if pa.types.is_list(array.type):
        yield (
            array.value_lengths()
            .fill_null(0)
            .to_numpy(zero_copy_only=False)
            .astype("<i4")
            .tobytes()
        )
        yield from _bytes_of(array.flatten())
    elif pa.types.is_struct(array.type):
        for child in array.flatten():
            yield from _bytes_of(child)
    elif pa.types.is_binary(array.type) or pa.types.is_string(array.type):
        empty = b"" if pa.types.is_binary(array.type) else ""
        offsets, data = binary_parts(array.fill_null(empty))
        yield np.diff(offsets).astype("<i4").tobytes()
        yield data[offsets[0] : offsets[-1]]
    else:
        yield array.fill_null(0).to_numpy(zero_copy_only=False).astype("<i8").tobytes()
