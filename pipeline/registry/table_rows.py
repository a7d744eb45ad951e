"""Rows of a CSV, Parquet or JSON Lines file for a model of tables, read as preprocessing does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.media import MediaFormat
from pipeline.preprocess.sources.columns import row_columns
from pipeline.preprocess.sources.rows import SUFFIXES, open_listing


def holds_rows(path: Path) -> bool:
    """Whether a file's name says that it holds rows."""
    return path.suffix.lower() in SUFFIXES


def table_rows(path: Path, fmt: MediaFormat) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Every row of a file, a batch of them in memory at a time.

    Yields:
        Where it lies, `FILE:row N` counted from 1, and its values by column, or why it has none.

    Raises:
        UserError: the file is damaged, lacks a column, or has one of another type.
    """
    columns = row_columns(fmt)
    for batch in open_listing(str(path), "input", columns).batches():
        for line, reason in batch.unread:
            yield f"{path}:line {line}", reason
        values = [array.to_pylist() for array in batch.arrays]
        for place in range(len(values[0])):
            name = f"{path}:row {batch.start + place + 1}"
            wrong = [
                column.name for column, bad in zip(columns, batch.wrong, strict=True) if bad[place]
            ]
            if place in batch.reasons:
                yield name, batch.reasons[place]
            elif wrong:
                yield name, f"column {wrong[0]!r} holds no value of its type"
            else:
                row = (column[place] for column in values)
                yield name, dict(zip((column.name for column in columns), row, strict=True))
