"""What the training rows of a table tell: rows of a listing, or of files of their own."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.media.errors import MediaError
from pipeline.media.table import TableVocabulary, fit_vocabulary, json_row, plain_row
from pipeline.media.table_format import TableFormat
from pipeline.sources.listing import Listing
from pipeline.sources.parts import Part, read_part
from pipeline.sources.reach import Reach
from pipeline.sources.row_lines import MAX_LINE_BYTES
from pipeline.sources.rows import BATCH_ROWS
from pipeline.sources.values import iter_values


def fit_table(listing: Listing, fmt: TableFormat) -> TableVocabulary:
    """Statistics and vocabularies of the training rows, wherever they lie.

    Rows in ``.json`` files are read here, one by one; those that decoding will refuse tell nothing.

    Raises:
        UserError: a column is of no fitting type, or has too many different values.
    """
    in_listing = "train" in listing.values
    batches = iter_values(listing, "train", fmt.columns) if in_listing else _rows(listing, fmt)
    try:
        return fit_vocabulary(batches, fmt)
    except MediaError as error:
        raise UserError(f"data.table: {error}") from None


def _rows(listing: Listing, fmt: TableFormat) -> Iterator[pa.RecordBatch]:
    """The training rows that lie in files: float64 numbers and text, null where missing."""
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
    """A row, or None where it cannot be used."""
    if part["size"] > MAX_LINE_BYTES:
        return None
    try:
        data = read_part(reach, Part.of(part))
        row = plain_row(json_row(data), fmt) if len(data) <= MAX_LINE_BYTES else None
        for value in (row or {}).values():
            if isinstance(value, str):
                value.encode()  # JSON can spell what is no text
    except (MediaError, UnicodeEncodeError, OSError):
        return None
    return row
