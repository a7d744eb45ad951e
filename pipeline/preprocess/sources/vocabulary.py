"""Fits the statistics of a table to its training rows, in a listing or in files of their own."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.media.errors import MediaError
from pipeline.media.format import MediaFormat
from pipeline.media.registered import modality_of
from pipeline.preprocess.sources.columns import Column
from pipeline.preprocess.sources.parts import SourceFile, read_part
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.row_lines import MAX_LINE_BYTES
from pipeline.preprocess.sources.rows import BATCH_ROWS
from pipeline.preprocess.sources.source_table import SourceTable

ROW_ROLES = ("number", "category")


def fit_rows(source_table: SourceTable, fmt: MediaFormat) -> dict[str, Any]:
    """Fit what a modality learns from its training rows, such as a table's vocabulary.

    Rows in files of their own are read here, one by one. Rows that decoding will refuse are
    ignored.

    Args:
        source_table: All sources.
        fmt: The format; the samples of its modality are rows.

    Returns:
        The result of `Modality.fit`, in JSON's types.

    Raises:
        UserError: A column has a type that does not fit, or too many different values.
    """
    in_listing = "train" in source_table.values
    names = [column.name for column in modality_of(fmt).columns(fmt)]
    batches = iter_values(source_table, "train", names) if in_listing else _rows(source_table, fmt)
    try:
        fitted: dict[str, Any] = modality_of(fmt).fit(batches, fmt)
    except MediaError as error:
        raise UserError(f"data.{fmt.modality}: {error}") from None
    return fitted


def _rows(source_table: SourceTable, fmt: MediaFormat) -> Iterator[pa.RecordBatch]:
    """Yield the training rows that lie in files: float64 numbers and text, null if missing."""
    types = {"number": pa.float64(), "category": pa.string()}
    columns = modality_of(fmt).columns(fmt)
    schema = pa.schema([(column.name, types[column.role]) for column in columns])
    reach = source_table.reaches["train"]
    for piece in source_table.pieces_of("train"):
        for batch in piece.select(["parts"]).to_batches(max_chunksize=BATCH_ROWS):
            rows = [
                row
                for sample in batch["parts"].to_pylist()
                for part in sample
                if part["field"] == fmt.modality
                if (row := _row(reach, part, fmt)) is not None
            ]
            yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _row(reach: Reach, part: dict[str, Any], fmt: MediaFormat) -> dict[str, Any] | None:
    """Return a row, or None if it cannot be used."""
    if part["size"] > MAX_LINE_BYTES:
        return None
    try:
        data = read_part(reach, SourceFile.of(part))
        row = modality_of(fmt).read_row(data, fmt) if len(data) <= MAX_LINE_BYTES else None
        for value in (row or {}).values():
            if isinstance(value, str):
                value.encode()  # JSON can hold surrogates, which are not text
    except (MediaError, UnicodeEncodeError, OSError):
        return None
    return row


def iter_values(
    source_table: SourceTable, split: str, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the values of a split's rows for statistics: float64 and text, null if missing.

    Args:
        source_table: All sources; the split's samples are rows of a listing.
        split: The name of the split.
        columns: The names of the columns of a row.

    Raises:
        KeyError: No row of the split has values, or there is no such column.
    """
    file = source_table.values[split].table_file
    chosen: list[Column] = []
    for name in columns:
        chosen += [next(c for c in file.columns if c.name == name and c.role in ROW_ROLES)]
    pieces = (piece["row"].to_numpy() for piece in source_table.pieces_of(split))  # in order
    rows = np.zeros(0, np.int64)
    for batch in file.only(tuple(chosen)).batches():
        stop = batch.start + len(batch.arrays[0])
        while not len(rows) or rows[-1] < stop:
            if (more := next(pieces, None)) is None:
                break
            rows = np.concatenate([rows, more])
        last = np.searchsorted(rows, stop)
        taken = pa.RecordBatch.from_arrays(batch.arrays, names=list(columns))
        yield taken.take(pa.array(rows[:last] - batch.start))
        rows = rows[last:]
