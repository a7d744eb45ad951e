"""Reads the lines of listings: rows of CSV and objects of JSON Lines, within a limit of memory."""

import csv
import io
import json
from collections.abc import Iterator
from typing import IO, Any

from pipeline.preprocess.sources.parts import opened

MAX_LINE_BYTES = 64 << 20
MAX_LINE_VALUES = 2_000_000
"""The most commas and brackets in a line. Each may take a hundred bytes once it is read."""


def csv_rows(file: IO[bytes], first_line: int = 1) -> Iterator[tuple[int, list[bytes] | str]]:
    """Yield the line number of each row, and its values, or the reason why it has none.

    Rows are read one by one, so that a row that is damaged or not UTF-8 costs only itself.

    Args:
        file: The file, at the start of a row.
        first_line: The number of its first line.

    Raises:
        OSError: A row is too large, or a quote is not closed.
    """
    # Latin-1 has a character for every byte, so the values keep their bytes.
    text = _BoundedLines(io.TextIOWrapper(file, encoding="latin-1", newline=""))
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(text, strict=True)
    while True:
        line = reader.line_num + first_line
        text.begin_row(line)
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise OSError(f"a quote that opens in line {line} is not closed") from None
            if "field larger" in str(error):
                raise OSError(
                    f"line {line} has a value of more than {MAX_LINE_BYTES} bytes, or a quote that "
                    "is not closed"
                ) from None
            yield line, "a quote in it does not end its value"
            continue
        if values:
            yield line, [value.encode("latin-1") for value in values]


class _BoundedLines:
    """The lines of a text for a CSV reader. A row that is too large is refused."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._row = self._length = self._values = 0

    def begin_row(self, line: int) -> None:
        """Start a row at this line: the following lines belong to it."""
        self._row, self._length, self._values = line, 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_LINE_BYTES + 1)
        self._length += len(line)
        self._values += line.count(",")
        if self._length > MAX_LINE_BYTES:
            raise OSError(
                f"line {self._row} has a row of more than {MAX_LINE_BYTES} bytes, or a quote that "
                "is not closed"
            )
        if self._values > MAX_LINE_VALUES:
            raise OSError(f"line {self._row} has a row of more than {MAX_LINE_VALUES} commas")
        if not line:
            raise StopIteration
        return line


def skip_bom(file: IO[bytes]) -> None:
    """Go past the UTF-8 byte order mark at the start of a file, if there is one."""
    if file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)


def csv_names(file: IO[bytes]) -> list[str]:
    """Return the names of the columns.

    Raises:
        OSError: There is no line with names.
    """
    skip_bom(file)
    for _, values in csv_rows(file):
        if not isinstance(values, str):
            return [value.decode("utf-8", "surrogateescape") for value in values]
    raise OSError("it has no line of columns' names")


def json_lines(source: str) -> Iterator[tuple[dict[str, Any] | str, int]]:
    """Yield each line's object, or the reason why it has none, and its length in bytes."""
    with opened(source) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                yield f"a line of more than {MAX_LINE_BYTES} bytes", 0
                continue
            if not line.strip():
                continue
            length = len(line)
            if sum(map(line.count, (b",", b"[", b"{"))) > MAX_LINE_VALUES:
                yield f"a line of more than {MAX_LINE_VALUES} values", 0
                continue
            try:
                value = json.loads(line.removeprefix(b"\xef\xbb\xbf"), parse_constant=_constant)
            except (ValueError, RecursionError):
                yield "not JSON", 0
                continue
            yield (value if isinstance(value, dict) else "not a JSON object"), length


def _constant(name: str) -> float | None:
    """Return None for NaN: some writers use it for a missing number."""
    return None if name == "NaN" else float(name)
