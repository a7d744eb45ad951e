"""Read rows of a CSV, Parquet or JSON Lines file for a model of tables, as preprocessing does."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.media import MediaFormat
from pipeline.media.format import Media, by_modality
from pipeline.media.registered import modality_of
from pipeline.preprocess.sources.columns import Column, row_columns
from pipeline.preprocess.sources.rows import open_listing
from pipeline.preprocess.sources.typed import Role


def table_rows(path: Path, media: Media) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yield every row of a file, with one batch of rows in memory at a time.

    For several modalities, the column of a modality has its name and holds paths, which are
    relative to the file's folder, or the files' bytes, or texts. Such a cell may be empty.

    Yields:
        The row's position, `FILE:row N` counted from 1, and its values by column, or the reason why
        it has none.

    Raises:
        UserError: The file is damaged, lacks a column, or has a column of another type.
    """
    columns = input_columns(media)
    listing = open_listing(str(path), "input", columns)
    are_paths = [column.role == "path" for column in listing.columns]
    for batch in listing.batches():
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
                row = (
                    _path(path, column[index]) if is_path else column[index]
                    for column, is_path in zip(values, are_paths, strict=True)
                )
                yield name, dict(zip((column.name for column in columns), row, strict=True))


def input_columns(media: Media) -> list[Column]:
    """Return the columns of the rows that a model of these media reads."""
    return [column for fmt in by_modality(media).values() for column in _columns(fmt)]


def _columns(fmt: MediaFormat) -> list[Column]:
    source = modality_of(fmt).source
    if source == "row":
        return row_columns(fmt)
    role: Role = "text" if source == "text" else "path"
    return [Column(fmt.modality, role, fmt.modality, "the model's input", required=False)]


def _path(listing: Path, value: bytes | None) -> Path | None:
    return None if value is None else listing.parent / os.fsdecode(value)
