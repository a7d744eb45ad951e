"""Compute from its page headers how much memory a Parquet file needs, before unpacking anything.

The header of a page declares the page's decompressed size, and a reader allocates that much. So a
file of 1 KB can request gigabytes. The sums in the footer may differ from what the pages declare,
so the page headers themselves are read.
"""

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.arrow_values import as_numpy
from shards.errors import ShardError
from shards.thrift_compact import BINARY, INT32, INT64, LIST, STRUCT, CompactReader, Lists, Struct

REMEDY = "; restore it or run 'perceiver preprocess' again"
_VALUE_BYTES = 16
"""The memory of a value in addition to its page: its levels, and its expanded repetitions."""

_HEADER_BYTES = (1 << 12, 1 << 20)
"""The bytes in which a page header is searched: first the smaller number, then the larger."""

_MAX_FOOTER_BYTES = 64 << 20
_MAX_DEPTH = 16
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_DELTA_BYTE_ARRAY = 7

_COLUMN: Lists = {
    2: INT32,
    3: BINARY,
    8: ({},),
    13: ({},),
    16: {2: INT64, 3: INT64},
    17: {2: INT32},
}
_CHUNK: Lists = {3: _COLUMN, 8: {2: {1: BINARY}}}
_FOOTER: Lists = {2: ({},), 4: ({1: (_CHUNK,), 4: ({},)},), 5: ({},), 7: ({},)}
"""The lists in a footer, by the field numbers of parquet.thrift."""


def check_parquet(
    file: BinaryIO | bytes,
    where: str,
    *,
    max_bytes: int,
    max_rows: int,
    columns: Collection[str] | None = None,
) -> pq.FileMetaData:
    """Reject a Parquet file that would unpack to too many bytes. Nothing is unpacked.

    Repeated entries in a dictionary of strings are not counted. So read such columns as
    dictionaries (`dictionary_columns`), and call `unpacked_bytes` before they are cast.

    Args:
        file: The whole file as bytes, or a seekable file.
        where: The name of the file in errors.
        max_bytes: The most memory that all pages together may take.
        max_rows: The most rows that the file may have.
        columns: The columns that will be read; None for all. The pages of others are not checked.

    Returns:
        The metadata of the file.

    Raises:
        ShardError: The file is not Parquet, is cut short, has too many rows or bytes, or
            contradicts itself.
    """
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        rows, groups = read_footer(file)
        metadata = pq.read_metadata(file)
        leaves = [*map(metadata.schema.column, range(metadata.num_columns))]
        names = [leaf.path for leaf in leaves]
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise refused(where, f"not a readable Parquet file ({_one_line(error)})") from error
    if rows != metadata.num_rows or len(groups) != metadata.num_row_groups:
        raise refused(where, "its footer is ambiguous")
    if rows > max_rows:
        raise refused(where, f"{rows} rows, and at most {max_rows} are expected")
    size = file.seek(0, io.SEEK_END)
    total = rows * metadata.num_columns * _VALUE_BYTES
    for group in groups:
        chunks = group.get((1, LIST), [])
        if len(chunks) != len(leaves):
            raise refused(where, "a row group has other columns than the file")
        for name, column, chunk in zip(names, leaves, chunks, strict=True):
            if columns is not None and name.partition(".")[0] not in columns:
                continue
            named = f"{where}: column {name!r}"
            total += _chunk_bytes(file, size, _chunk(chunk), _rows(group), column, named)
            if total > max_bytes:
                raise refused(where, f"it would unpack into more than {max_bytes} bytes")
    file.seek(0)
    return metadata


def dictionary_columns(metadata: pq.FileMetaData) -> list[str]:
    """Return the string columns that a reader must keep as dictionaries (`read_dictionary`)."""
    columns = map(metadata.schema.column, range(metadata.num_columns))
    return [column.path for column in columns if _is_text(column)]


def unpacked_bytes(table: pa.Table) -> int:
    """Return the bytes of a table after its dictionaries of strings are cast to plain columns."""
    return sum(_expanded(chunk) for column in table.columns for chunk in column.chunks)


def refused(where: str, what: str) -> ShardError:
    """Return the error for a Parquet file that must not be read."""
    return ShardError(f"{where}: {what}{REMEDY}")


def _expanded(array: pa.Array) -> int:
    if pa.types.is_dictionary(array.type):
        if not _is_binary(array.type.value_type):
            return array.nbytes
        lengths = pc.binary_length(array.dictionary).take(array.indices).drop_null()
        return int(as_numpy(lengths).sum(dtype=np.int64)) + 8 * len(array)
    if pa.types.is_struct(array.type):
        return sum(map(_expanded, array.flatten()))
    if pa.types.is_map(array.type):
        return _expanded(array.keys) + _expanded(array.items) + 8 * len(array)
    if pa.types.is_nested(array.type):  # a list of some kind
        return _expanded(array.flatten()) + 8 * len(array)
    return array.nbytes


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
    )


def _is_text(column: pq.ColumnSchema) -> bool:
    return column.physical_type == "BYTE_ARRAY" and column.logical_type.type in ("STRING", "NONE")


def read_footer(file: BinaryIO) -> tuple[int, list[Struct]]:
    """Read the number of rows and the row groups from the footer.

    pyarrow is not used here, because some damaged footers make it abort the process.

    Raises:
        ValueError: The footer is damaged, or pyarrow could not read it.
        IndexError: The footer ends too early.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - 8, 0))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or not 0 < length <= min(size - 12, _MAX_FOOTER_BYTES):
        raise ValueError("its end mark is missing or damaged")
    file.seek(size - 8 - length)
    fields = CompactReader(file.read(length)).struct(_FOOTER)
    _check_schema(fields.get((2, LIST)))
    rows, groups = fields.get((3, INT64), -1), fields.get((4, LIST), [])
    if min(map(_rows, groups), default=0) < 0 or sum(map(_rows, groups)) != rows:
        raise ValueError("its row groups do not add up to its rows")
    return rows, groups


def _check_schema(elements: Any) -> None:
    """Raise ValueError unless the elements form a tree that is not too deep."""
    if not isinstance(elements, list) or not elements:
        raise ValueError("it has no columns")
    open_nodes: list[int] = []
    for number, element in enumerate(elements):
        if number and not open_nodes:
            raise ValueError("columns without a parent")
        if number and element.get((3, INT32)) not in (0, 1, 2):
            raise ValueError("a column is neither required nor optional nor repeated")
        if open_nodes:
            open_nodes[-1] -= 1
        children = element.get((5, INT32), 0)
        if children < 0 or len(open_nodes) >= _MAX_DEPTH:
            raise ValueError("columns nested too deeply")
        open_nodes.append(children)
        while open_nodes and not open_nodes[-1]:
            open_nodes.pop()
    if open_nodes:
        raise ValueError("a column lacks its children")


@dataclass(frozen=True)
class Page:
    """The header of a page: its kind, unpacked and packed bytes, values and encoding."""

    kind: int
    unpacked: int
    packed: int
    values: int
    encoding: int


@dataclass(frozen=True)
class _Chunk:
    values: int
    packed: int
    data_page: int
    dictionary_page: int


def _rows(group: Struct) -> int:
    return int(group.get((3, INT64), -1))


def _chunk(fields: Struct) -> _Chunk:
    column = fields.get((3, STRUCT), {})
    values, packed, data_page, dictionary_page = (
        int(column.get((number, INT64), default))
        for number, default in ((5, -1), (7, -1), (9, -1), (11, 0))
    )
    return _Chunk(values, packed, data_page, dictionary_page)


def _chunk_bytes(
    file: BinaryIO, size: int, chunk: _Chunk, rows: int, column: pq.ColumnSchema, named: str
) -> int:
    """Return the most bytes of a column chunk in memory, without repetitions of its strings."""
    if chunk.values < 0 or (column.max_repetition_level == 0 and chunk.values != rows):
        raise refused(named, "it does not have one value for each row")
    if chunk.values == 0:
        return 0
    start = chunk.data_page
    if chunk.dictionary_page > 0:
        start = min(start, chunk.dictionary_page)
    stop = start + chunk.packed
    if not 0 < start <= stop <= size:
        raise refused(named, "it lies outside the file")
    width = _VALUE_BYTES + (column.length if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0)
    total, dictionary = chunk.values * width, 0
    for page in pages(file, start, stop, chunk.values, named):
        total += page.unpacked
        if page.kind == _DICTIONARY_PAGE:
            dictionary = page.unpacked
        elif column.physical_type == "BYTE_ARRAY" and page.encoding == _DELTA_BYTE_ARRAY:
            # Each value may repeat all of the previous value, so the page's size bounds nothing.
            raise refused(named, "it is encoded as DELTA_BYTE_ARRAY")
    if column.physical_type == "BYTE_ARRAY" and not _is_text(column):
        total += dictionary * chunk.values
    return total


def pages(file: BinaryIO, start: int, stop: int, num_values: int, where: str) -> Iterator[Page]:
    """Yield the pages of a column chunk until they contain `num_values` values."""
    while num_values > 0:
        page, length = _page_at(file, start, stop, where)
        start += length + page.packed
        if start > stop:
            raise refused(where, "a page lies outside the file")
        yield page
        num_values -= page.values


def _page_at(file: BinaryIO, start: int, stop: int, where: str) -> tuple[Page, int]:
    """Return the page whose header is at `start`, and the header's length in bytes."""
    for limit in _HEADER_BYTES:
        file.seek(start)
        data = file.read(min(limit, stop - start))
        header = CompactReader(data)
        try:
            page = _page(header.struct({}))
        except IndexError:
            if len(data) < limit:
                break
            continue
        except ValueError as error:
            raise refused(where, f"damaged page ({error})") from error
        return page, header.offset
    raise refused(where, "a page's header is cut short or too long")


def _page(fields: Struct) -> Page:
    """Return the page of a header. Raises ValueError if a field is missing or negative."""
    kind, unpacked, packed = (fields.get((number, INT32), -1) for number in (1, 2, 3))
    details, encoding = {
        _DATA_PAGE: (fields.get((5, STRUCT), {}), 2),
        _DATA_PAGE_V2: (fields.get((8, STRUCT), {}), 4),
    }.get(kind, ({(1, INT32): 0}, 2))
    values = details.get((1, INT32), -1)
    if min(kind, unpacked, packed, values) < 0:
        raise ValueError("its header lacks a field or has a negative one")
    return Page(kind, unpacked, packed, values, details.get((encoding, INT32), 0))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
