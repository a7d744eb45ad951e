"""Digests of tables, by column and without regard to how the tables are cut into pieces."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.preprocess.sources.tables import BATCH_ROWS, binary_parts, one_chunk


def table_digest(tables: Sequence[pa.Table]) -> str:
    """Return the sha256 of all rows in their order, as hexadecimal digits.

    It does not depend on how the tables are cut into chunks.
    """
    hashed = hashlib.sha256()
    for table in tables:
        for name in table.column_names:
            hash_column(hashed, name, table.num_rows, table[name].chunks)
    return hashed.hexdigest()


def hash_column(hashed: Any, name: str, num_rows: int, pieces: Iterable[pa.Array]) -> None:
    """Add a column to a hash. Only some thousand rows are held at a time.

    Args:
        hashed: The hash, of `hashlib`.
        name: The name of the column.
        num_rows: The number of its rows.
        pieces: Its values in pieces of any number of rows.
    """
    hashed.update(f"{name}\0{num_rows}\0".encode())
    for chunk in _even_chunks(pieces):
        for piece in _bytes_of(chunk):
            hashed.update(piece)


def _even_chunks(pieces: Iterable[pa.Array]) -> Iterator[pa.Array]:
    """Yield pieces of a fixed number of rows: the digest must not depend on the given ones."""
    waiting: list[pa.Array] = []
    count = 0
    for piece in pieces:
        start = 0
        while start < len(piece):
            taken = piece.slice(start, BATCH_ROWS - count)
            waiting.append(taken)
            start, count = start + len(taken), count + len(taken)
            if count == BATCH_ROWS:
                yield _joined(waiting)
                waiting, count = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(arrays: list[pa.Array]) -> pa.Array:
    return one_chunk(pa.chunked_array(arrays))


def _bytes_of(array: pa.Array) -> Iterator[bytes | memoryview]:
    """Yield the nulls, lengths and values of an array, as bytes."""
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
