"""Fits the statistics of a table to its training rows, in a listing or in files of their own."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.media.errors import MediaError
from pipeline.media.table.decode import TableVocabulary, fit_vocabulary, json_row, plain_row
from pipeline.media.table.format import TableFormat
from pipeline.preprocess.sources.columns import Column
from pipeline.preprocess.sources.listing import SourceTable
from pipeline.preprocess.sources.parts import SourceFile, read_part
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.row_lines import MAX_LINE_BYTES
from pipeline.preprocess.sources.rows import BATCH_ROWS


def fit_table(listing: SourceTable, fmt: TableFormat) -> TableVocabulary:
    """Fit the statistics and vocabularies of the training rows.

    Rows in `.json` files are read here, one by one. Rows that decoding will refuse are ignored.

    Args:
        listing: All sources.
        fmt: The columns of the table.

    Raises:
        UserError: A column has a type that does not fit, or too many different values.
    """
    in_listing = "train" in listing.values
    batches = iter_values(listing, "train", fmt.columns) if in_listing else _rows(listing, fmt)
    try:
        return fit_vocabulary(batches, fmt)
    except MediaError as error:
        raise UserError(f"data.table: {error}") from None


def _rows(listing: SourceTable, fmt: TableFormat) -> Iterator[pa.RecordBatch]:
    """Yield the training rows that lie in files: float64 numbers and text, null if missing."""
    schema = pa.schema(
        [
            *((column, pa.float64()) for column in fmt.numeric),
            *((column, pa.string()) for column in fmt.categorical),
        ]
    )
    parts = listing.of_split("train")["parts"]
    for start in range(0, len(parts), BATCH_ROWS):
        rows = [
            row
            for sample in parts.slice(start, BATCH_ROWS).to_pylist()
            for part in sample
            if part["field"] == "table"
            if (row := _row(listing.reaches["train"], part, fmt)) is not None
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _row(reach: Reach, part: dict[str, Any], fmt: TableFormat) -> dict[str, Any] | None:
    """Return a row, or None if it cannot be used."""
    if part["size"] > MAX_LINE_BYTES:
        return None
    try:
        data = read_part(reach, SourceFile.of(part))
        row = plain_row(json_row(data), fmt) if len(data) <= MAX_LINE_BYTES else None
        for value in (row or {}).values():
            if isinstance(value, str):
                value.encode()  # JSON can hold surrogates, which are not text
    except (MediaError, UnicodeEncodeError, OSError):
        return None
    return row


def iter_values(
    listing: SourceTable, split: str, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the values of a split's rows for statistics: float64 and text, null if missing.

    Args:
        listing: All sources; the split's samples are rows of a listing.
        split: The name of the split.
        columns: The names of columns of `data.table`.

    Raises:
        KeyError: No row of the split has values, or there is no such column.
    """
    file = listing.values[split].listing
    chosen: list[Column] = []
    for name in columns:
        chosen += [next(c for c in file.columns if c.name == name and c.use == "table")]
    rows = np.sort(listing.of_split(split)["row"].to_numpy())
    for batch in file.only(tuple(chosen)).batches():
        stop = batch.start + len(batch.arrays[0])
        first, last = np.searchsorted(rows, [batch.start, stop])
        taken = pa.RecordBatch.from_arrays(batch.arrays, names=list(columns))
        yield taken.take(pa.array(rows[first:last] - batch.start))
