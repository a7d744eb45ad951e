"""Lines of listings: rows of CSV and objects of JSON Lines, none larger than memory holds."""

import csv
import io
import json
from collections.abc import Iterator
from typing import IO, Any

from pipeline.preprocess.sources.parts import opened

MAX_LINE_BYTES = 64 << 20
MAX_LINE_VALUES = 2_000_000
"""Commas and brackets in a line: each may take a hundred bytes once it is read."""


def csv_rows(file: IO[bytes]) -> Iterator[tuple[int, list[bytes] | str]]:
    """Each row's line, from 1, and its values, or why it has none.

    Rows are read one by one, since a row that is not UTF-8 or cut short must cost itself alone.
    """
    if file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)
    # Latin-1 gives every byte a character, so that values come out as the bytes they were.
    text = _BoundedLines(io.TextIOWrapper(file, encoding="latin-1", newline=""))
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(text, strict=True)
    while True:
        line = reader.line_num + 1
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
    """Lines of a text for a reader of CSV; no row takes more than its share of memory."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._row = self._length = self._values = 0

    def begin_row(self, line: int) -> None:
        """The lines that follow are of the row that begins at this line."""
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


def csv_names(file: IO[bytes]) -> list[str]:
    """The names of the columns. Raises OSError: there is no line of them."""
    for _, values in csv_rows(file):
        if not isinstance(values, str):
            return [value.decode("utf-8", "surrogateescape") for value in values]
    raise OSError("it has no line of columns' names")


def json_lines(source: str) -> Iterator[tuple[dict[str, Any] | str, int]]:
    """Each line's object, or why it gives none; and the line's length in bytes."""
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
    """NaN is how some writers say that there is no number."""
    return None if name == "NaN" else float(name)
