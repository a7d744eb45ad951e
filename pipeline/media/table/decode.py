"""Rows of tables: their columns' statistics and vocabularies, and rows as vectors of float64."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.table.categories import Categories
from pipeline.media.table.format import TableFormat
from pipeline.media.table.values import MAX_NUMBER, read_name, read_number

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FittedTableFormat", "TableFormat", "TableVocabulary", "fit_vocabulary"]

MAX_DISTINCT = 1_000_000
"""Values of one column that are counted at most: their memory is all that fitting takes."""


@dataclass(frozen=True, kw_only=True)
class TableVocabulary:
    """What training rows tell of the columns of a `TableFormat`.

    Attributes:
        categories: each categorical column's known values, sorted; their places are the indices.
        mean, std: of each numeric column's values that are not missing (the population's; a column
            of one value, or none, has std 1).
    """

    categories: dict[str, tuple[str, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {
            "categories": {name: list(values) for name, values in self.categories.items()},
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TableVocabulary":
        """The inverse of `to_dict`."""
        return cls(
            categories={name: tuple(known) for name, known in values["categories"].items()},
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
        )


@dataclass(frozen=True, kw_only=True)
class FittedTableFormat(TableFormat):
    """A table's format with the vocabulary of its training rows: enough to encode any row.

    Raises:
        ValueError: the vocabulary is of other columns.
    """

    vocabulary: TableVocabulary

    def __post_init__(self) -> None:
        super().__post_init__()
        vocabulary = self.vocabulary
        if set(vocabulary.categories) != set(self.categorical) or not (
            len(vocabulary.mean) == len(vocabulary.std) == len(self.numeric)
        ):
            raise ValueError(
                f"the vocabulary has {len(vocabulary.mean)} numeric columns and the categorical "
                f"{sorted(vocabulary.categories)}; it must be fitted to {list(self.columns)}"
            )

    @classmethod
    def of(cls, fmt: TableFormat, vocabulary: TableVocabulary) -> "FittedTableFormat":
        """`fmt` with a vocabulary."""
        return cls(
            numeric=fmt.numeric,
            categorical=fmt.categorical,
            max_categories=fmt.max_categories,
            vocabulary=vocabulary,
        )

    def encode_row(self, values: Mapping[str, Any]) -> np.ndarray:
        """A row as a vector.

        Args:
            values: by column, of the types that `pipeline.media.table.values` reads. Other
                columns are left alone.

        Returns:
            float64 `[num_numeric + num_categorical]`: numbers as they are, then categories'
            indices, the number of known ones for a value that is none of them; NaN where missing.

        Raises:
            MediaError: a column is not there, or its value is of no fitting type.
        """
        row = np.full(len(self.columns), np.nan)
        for place, (column, value) in enumerate(plain_row(values, self).items()):
            if column in self._categories:
                assert not isinstance(value, float)
                row[place] = self._categories[column].index(values[column], value)
            elif value is not None:
                row[place] = value
        return row

    def misread_number(self, values: Mapping[str, Any]) -> str | None:
        """Why a number in a row may be a category whose name it has lost, or None.

        pandas reads the text 007 as the number 7, and 3.10 as 3.1. A number is one of the known
        categories only if there is no doubt which.

        Args:
            values: by column, as `encode_row` takes them.
        """
        for column, categories in self._categories.items():
            value = values.get(column)
            if known := categories.doubtful(value):
                return (
                    f"column {column!r} holds the number {value}, and the model knows the text "
                    f"{' or '.join(map(repr, known[:3]))}; send it as text"
                )
        return None

    @cached_property
    def _categories(self) -> dict[str, Categories]:
        known = self.vocabulary.categories
        return {column: Categories(known[column]) for column in self.categorical}


def plain_row(values: Mapping[str, Any], fmt: TableFormat) -> dict[str, float | str | None]:
    """A row's numbers and names of categories, in the order of the format's columns.

    Args:
        values: by column; other columns are left out.
        fmt: the columns.

    Returns:
        None where a value is missing.

    Raises:
        MediaError: a column is not there, or its value is of no fitting type.
    """
    row: dict[str, float | str | None] = {}
    for place, column in enumerate(fmt.columns):
        if column not in values:
            raise MediaError(f"column {column!r} is not there")
        read = read_number if place < len(fmt.numeric) else read_name
        try:
            row[column] = read(values[column])
        except ValueError as error:
            raise MediaError(f"column {column!r} holds {error}") from None
    return row


def json_row(data: bytes) -> dict[str, Any]:
    """A row that a file holds as one JSON object.

    Raises:
        MediaError: it is none.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MediaError(f"not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise MediaError(f"JSON, but a {type(values).__name__} and no object of columns")
    return values


def decode_json_row(data: bytes, fmt: FittedTableFormat) -> np.ndarray:
    """A row that a file holds as one JSON object, encoded.

    Raises:
        MediaError: no JSON object, or as of `FittedTableFormat.encode_row`.
    """
    return fmt.encode_row(json_row(data))


def fit_vocabulary(batches: Iterable["pa.RecordBatch"], fmt: TableFormat) -> TableVocabulary:
    """Statistics and vocabularies of training rows, in one pass with the memory of one batch.

    The result depends on the rows, and in its last bits on how they are cut into batches. Of
    equally frequent categories the first by name are kept.

    Args:
        batches: training rows; at least the columns of `fmt`.
        fmt: the columns.

    Raises:
        MediaError: a column is not there, is of no fitting type, or has more than 1,000,000
            different categories.
    """
    moments = {column: _Moments() for column in fmt.numeric}
    counts: dict[str, Counter[str]] = {column: Counter() for column in fmt.categorical}
    for batch in batches:
        for column in fmt.columns:
            if column not in batch.schema.names:
                raise MediaError(
                    f"column {column!r} is not there; the table has {', '.join(batch.schema.names)}"
                )
        for column, moment in moments.items():
            moment.add(_numbers(batch.column(column), column))
        for column, counter in counts.items():
            _count(batch.column(column), column, counter)
    kept = {
        column: sorted(counter, key=lambda name: (-counter[name], name))[: fmt.max_categories]
        for column, counter in counts.items()
    }
    return TableVocabulary(
        categories={column: tuple(sorted(names)) for column, names in kept.items()},
        mean=tuple(moment.mean for moment in moments.values()),
        std=tuple(moment.std for moment in moments.values()),
    )


class _Moments:
    """Mean and variance of a stream of numbers (Chan, Golub and LeVeque's pairwise update)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Take in float64 `[n]`; NaN is missing."""
        values = values[~np.isnan(values)]
        if not len(values):
            return
        mean = float(values.mean())
        squares = float(((values - mean) ** 2).sum())
        total = self.count + len(values)
        between = mean - self.mean
        self._squares += squares + between**2 * self.count * len(values) / total
        self.mean += between * len(values) / total
        self.count = total

    @property
    def std(self) -> float:
        std = math.sqrt(self._squares / self.count) if self.count else 0.0
        # What is left of equal values by rounding is no spread.
        return std if std > 1e-12 * abs(self.mean) and math.isfinite(std) else 1.0


def _numbers(column: "pa.Array", name: str) -> np.ndarray:
    """A column as float64, NaN where missing."""
    import pyarrow as pa

    kind = column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)
    if not (numeric or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)):
        raise MediaError(f"column {name!r} holds {kind}, not numbers")
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if (np.abs(values) > MAX_NUMBER).any():
        raise MediaError(f"column {name!r} holds numbers that are not finite, or beyond float32")
    return values


def _count(column: "pa.Array", name: str, counter: "Counter[str]") -> None:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind, types = column.type, pa.types
    if types.is_nested(kind):
        raise MediaError(f"column {name!r} holds {kind}, no categories")
    for entry in column.value_counts().to_pylist():
        try:
            category = read_name(entry["values"])
        except ValueError as error:
            raise MediaError(f"column {name!r} holds {error}") from None
        if category is not None:
            counter[category] += entry["counts"]
    if len(counter) > MAX_DISTINCT:
        raise MediaError(
            f"column {name!r} has more than {MAX_DISTINCT} different values; it is none of "
            "categories: leave it out, or name it under numeric"
        )
