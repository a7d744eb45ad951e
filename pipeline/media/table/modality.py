"""The modality `table`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.modality import Conversion, Modality, RowColumn
from pipeline.media.table.decode import (
    FittedTableFormat,
    TableVocabulary,
    decode_json_row,
    fit_vocabulary,
    json_row,
    plain_row,
)
from pipeline.media.table.format import TableFormat
from pipeline.media.table.row_encoder import RowEncoder

VOCABULARY = "vocabulary"
"""The key of a manifest's configuration that holds a table's vocabulary."""


class TableModality(Modality[TableFormat]):
    """Rows, float64 `[columns]`: numbers, then indices of categories. NaN means missing."""

    format = TableFormat
    extensions = frozenset({"json"})
    inputs = "pipeline.inputs.table:TableInputs"
    source = "row"
    fitted_key = VOCABULARY
    is_in_every_manifest = True

    def decode(
        self, data: bytes, fmt: TableFormat, *, name: str = "", strict: bool = True
    ) -> Iterator[np.ndarray]:
        """Yield the one row, from a JSON object."""
        yield decode_json_row(data, _fitted(fmt))

    def array_type(self, fmt: TableFormat) -> tuple[np.dtype, tuple[int, ...]]:
        """Return float64 and `[columns]`."""
        return np.dtype(np.float64), (len(fmt.columns),)

    def from_dict(self, fields: Mapping[str, Any]) -> TableFormat:
        """Return the format. For a fitted format, `vocabulary` is a dictionary in `fields`."""
        if "vocabulary" not in fields:
            return TableFormat(**fields)
        vocabulary = TableVocabulary.from_dict(fields["vocabulary"])
        return FittedTableFormat(**{**fields, "vocabulary": vocabulary})

    def unreadable(self, stored: TableFormat, fmt: TableFormat) -> str | None:
        """Return a reason that names the first column that the set lacks; None if it has all."""
        for kind in ("numeric", "categorical"):
            lacking = [name for name in getattr(fmt, kind) if name not in getattr(stored, kind)]
            if lacking:
                return f"it reads the {kind} column {lacking[0]!r}, and the set has none"
        return None

    def compared(self, stored: TableFormat, fmt: TableFormat) -> frozenset[str]:
        """Return no fields: rows are re-encoded, so a set's columns may differ."""
        return frozenset()

    def conversion(self, stored: TableFormat, fmt: TableFormat) -> Conversion:
        """Return a conversion that re-encodes rows with the model's own vocabulary."""
        if not (isinstance(stored, FittedTableFormat) and isinstance(fmt, FittedTableFormat)):
            return super().conversion(stored, fmt)
        encoder = RowEncoder(stored, fmt)
        uncertain = encoder.uncertain if encoder.has_doubts else None
        return Conversion(stored, encoder.one_row, uncertain)

    def columns(self, fmt: TableFormat) -> tuple[RowColumn, ...]:
        """Return the numeric columns, then the categorical ones."""
        return (
            *(RowColumn(name, "number", "numeric") for name in fmt.numeric),
            *(RowColumn(name, "category", "categorical") for name in fmt.categorical),
        )

    def read_row(self, data: bytes, fmt: TableFormat) -> dict[str, float | str | None]:
        """Return the row that a JSON object holds."""
        return plain_row(json_row(data), fmt)

    def encode_row(
        self, values: Mapping[str, Any], fmt: TableFormat, *, careful: bool = False
    ) -> np.ndarray:
        """Encode a row, as `FittedTableFormat.encode_row` does.

        Raises:
            MediaError: A column is missing or cannot be read; or `careful` is set, and a number may
                be a category that has lost its text.
        """
        fitted = _fitted(fmt)
        if careful and (doubt := fitted.misread_number(values)):
            raise MediaError(doubt)
        return fitted.encode_row(values)

    def fit(self, rows: Iterable[Any], fmt: TableFormat) -> dict[str, Any]:
        """Return the vocabulary of the rows, as a dictionary."""
        return fit_vocabulary(rows, fmt).to_dict()

    def fitted(self, fmt: TableFormat, made_with: Mapping[str, Any]) -> FittedTableFormat:
        """Return the format with a set's vocabulary.

        Raises:
            ValueError: The set has no vocabulary.
        """
        if made_with.get(VOCABULARY) is None:
            raise ValueError("the shard set has no vocabulary of its table; preprocess it again")
        return FittedTableFormat.of(fmt, TableVocabulary.from_dict(made_with[VOCABULARY]))

    def example(self, fmt: TableFormat) -> dict[str, Any]:
        """Return a row of the means and of each column's first category.

        Raises:
            ValueError: The format has no vocabulary.
        """
        if not isinstance(fmt, FittedTableFormat):
            raise ValueError(f"{self.name}: a table needs its vocabulary")
        known = fmt.vocabulary.categories
        numbers = dict(zip(fmt.numeric, fmt.vocabulary.mean, strict=True))
        names = {name: next(iter(known[name]), "unknown") for name in fmt.categorical}
        return numbers | names


def _fitted(fmt: TableFormat) -> FittedTableFormat:
    if not isinstance(fmt, FittedTableFormat):
        raise ValueError("a table's rows need a FittedTableFormat, with its vocabulary")
    return fmt
