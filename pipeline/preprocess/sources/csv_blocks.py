"""Reads the columns of a CSV file in blocks: by Arrow where a block is plain, else row by row.

A block is plain if it has no quote, no carriage return inside a line, and as many commas in every
line. Then each comma separates two values, and Arrow's parser and Python's give the same.
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

import pyarrow as pa
import pyarrow.csv as pa_csv

from pipeline.preprocess.sources.row_lines import MAX_LINE_BYTES, csv_rows

BLOCK_BYTES = 1 << 20
BATCH_ROWS = 1024
BATCH_BYTES = 16 << 20

_BOM = b"\xef\xbb\xbf"
_LONE_RETURN = re.compile(rb"\r(?!\n)")


@dataclass
class CsvPiece:
    """Some consecutive rows.

    Attributes:
        columns: The values of each column that was asked for, binary `[rows]`, without nulls.
        unread: The lines that gave no row: their number, from 1, and the reason.
    """

    columns: list[pa.Array]
    unread: list[tuple[int, str]] = field(default_factory=list)


def csv_pieces(file: IO[bytes], num_columns: int, indices: Sequence[int]) -> Iterator[CsvPiece]:
    """Yield all rows after the header, in order.

    Args:
        file: The file, at its start.
        num_columns: The number of columns in the header.
        indices: The columns to return.

    Raises:
        OSError: A row is too large, or a quote is not closed.
    """
    first_line, header_seen = 1, False
    start = file.read(len(_BOM))
    start = b"" if start == _BOM else start
    while block := start + file.read(BLOCK_BYTES):
        block += file.readline(MAX_LINE_BYTES)
        start = b""
        whole = block.endswith(b"\n") and b'"' not in block
        if whole and not header_seen:
            header = _header_length(block)
            whole = header is not None
            header_seen, first_line = whole, first_line + len(block[: header or 0].splitlines())
            block = block[header or 0 :]
        if not whole:
            # A value may go on in the next block, so the rest is read row by row.
            rest = io.BufferedReader(_Joined(block, file), BLOCK_BYTES)  # type: ignore[type-var]  # typeshed wants more than RawIOBase
            yield from _by_row(rest, first_line, num_columns, indices, header_seen)
            return
        if not _is_plain(block, num_columns):
            yield from _by_row(io.BytesIO(block), first_line, num_columns, indices, header_seen)
        elif block.strip(b"\r\n"):
            yield CsvPiece(_parsed(block, num_columns, indices))
        first_line += len(block.splitlines())


def _header_length(block: bytes) -> int | None:
    """Return the length of the header and the blank lines before it.

    None if the block has no other line, or if a carriage return divides one of these lines.
    """
    end = 0
    for line in block.splitlines(keepends=True):
        if line.endswith(b"\r"):
            return None
        end += len(line)
        if line.strip(b"\r\n"):
            return end
    return None


def _is_plain(block: bytes, num_columns: int) -> bool:
    if _LONE_RETURN.search(block) or block.startswith(_BOM):  # Arrow drops a mark at the start
        return False
    commas = num_columns - 1
    return all(line.count(b",") == commas for line in block.splitlines() if line)


def _parsed(block: bytes, num_columns: int, indices: Sequence[int]) -> list[pa.Array]:
    names = [str(number) for number in range(num_columns)]
    wanted = [names[index] for index in dict.fromkeys(indices)]
    table = pa_csv.read_csv(
        pa.py_buffer(block),
        read_options=pa_csv.ReadOptions(column_names=names, block_size=2 * len(block)),
        parse_options=pa_csv.ParseOptions(quote_char=False, double_quote=False),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()),
            include_columns=wanted,
            strings_can_be_null=False,
        ),
    )
    columns = {name: table.column(name).combine_chunks() for name in wanted}
    return [columns[names[index]] for index in indices]


def _by_row(
    file: IO[bytes],
    first_line: int,
    num_columns: int,
    indices: Sequence[int],
    header_seen: bool,
) -> Iterator[CsvPiece]:
    rows: list[list[bytes]] = []
    unread: list[tuple[int, str]] = []
    size = 0
    for line, values in csv_rows(file, first_line):
        if isinstance(values, str):
            unread.append((line, values))
        elif not header_seen:
            header_seen = True
        elif len(values) != num_columns:
            unread.append((line, f"{len(values)} values for {num_columns} columns"))
        else:
            rows.append([values[index] for index in indices])
            size += sum(map(len, rows[-1]))
        if max(len(rows), len(unread)) == BATCH_ROWS or size > BATCH_BYTES:
            yield _piece(rows, unread, len(indices))
            rows, unread, size = [], [], 0
    if rows or unread:
        yield _piece(rows, unread, len(indices))


def _piece(rows: list[list[bytes]], unread: list[tuple[int, str]], count: int) -> CsvPiece:
    columns = list(zip(*rows, strict=True)) or [()] * count
    return CsvPiece([pa.array(values, pa.binary()) for values in columns], unread)


class _Joined(io.RawIOBase):
    """The bytes of a block, and then the rest of a file."""

    def __init__(self, block: bytes, file: IO[bytes]) -> None:
        self._block, self._file = io.BytesIO(block), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # any buffer
        data = self._block.read(len(buffer)) or self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
