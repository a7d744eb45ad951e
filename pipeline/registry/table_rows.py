"""Read rows of a CSV, Parquet or JSON Lines file for a model of tables, as preprocessing does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.media import MediaFormat
from pipeline.preprocess.sources.columns import row_columns
from pipeline.preprocess.sources.rows import SUFFIXES, open_listing


def holds_rows(path: Path) -> bool:
    """Return whether the extension of a file means that it holds rows."""
    return path.suffix.lower() in SUFFIXES


def table_rows(path: Path, fmt: MediaFormat) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yield every row of a file, with one batch of rows in memory at a time.

    Yields:
        The row's position, `FILE:row N` counted from 1, and its values by column, or the reason why
        it has none.

    Raises:
        UserError: The file is damaged, lacks a column, or has a column of another type.
    """
    columns = row_columns(fmt)
    for batch in open_listing(str(path), "input", columns).batches():
        for line, reason in batch.unread:
            yield f"{path}:line {line}", reason
        values = [array.to_pylist() for array in batch.arrays]
        for index in range(len(values[0])):
            name = f"{path}:row {batch.start + index + 1}"
            wrong = [
                column.name for column, bad in zip(columns, batch.wrong, strict=True) if bad[index]
            ]
            if index in batch.reasons:
                yield name, batch.reasons[index]
            elif wrong:
                yield name, f"column {wrong[0]!r} holds no value of its type"
            else:
                row = (column[index] for column in values)
                yield name, dict(zip((column.name for column in columns), row, strict=True))
