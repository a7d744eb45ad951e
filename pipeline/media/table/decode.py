"""Tables: fit statistics and vocabularies of columns, and encode rows as float64 vectors."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from perceiver_model.config_checks import config_dataclass
from pipeline.media.errors import MediaError
from pipeline.media.table.categories import Categories
from pipeline.media.table.format import TableFormat
from pipeline.media.table.values import MAX_NUMBER, read_name, read_number

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FittedTableFormat", "TableFormat", "TableVocabulary", "fit_vocabulary"]

MAX_DISTINCT = 1_000_000
"""The most values of one column that are counted. They take nearly all the memory of fitting."""


@dataclass(frozen=True, kw_only=True)
class TableVocabulary:
    """What is fitted on the training rows for the columns of a `TableFormat`.

    Attributes:
        categories: The known values of each categorical column, sorted. The index of a value is its
            position.
        mean: The mean of each numeric column, without missing values.
        std: The population standard deviation of each numeric column, without missing values. It is
            1 for a column whose values are all equal or all missing.
    """

    categories: dict[str, tuple[str, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a form that JSON can hold."""
        return {
            "categories": {name: list(values) for name, values in self.categories.items()},
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TableVocabulary":
        """Return the vocabulary that `to_dict` converted."""
        return cls(
            categories={name: tuple(known) for name, known in values["categories"].items()},
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
        )


@config_dataclass
class FittedTableFormat(TableFormat):
    """A table's format with the vocabulary of its training rows. It can encode any row.

    Attributes:
        vocabulary: The vocabulary of the training rows.

    Raises:
        ValueError: The vocabulary has other columns.
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
        """Return `fmt` with a vocabulary."""
        return cls(
            numeric=fmt.numeric,
            categorical=fmt.categorical,
            max_categories=fmt.max_categories,
            vocabulary=vocabulary,
        )

    def encode_row(self, values: Mapping[str, Any]) -> np.ndarray:
        """Encode a row as a vector.

        Args:
            values: The values by column, of the types that `pipeline.media.table.values` reads.
                Other columns are ignored.

        Returns:
            float64 `[num_numeric + num_categorical]`: the numbers, then the indices of the
                categories.
            An unknown category has the number of known ones as its index. A missing value is NaN.

        Raises:
            MediaError: A column is missing, or its value cannot be read.
        """
        row = np.full(len(self.columns), np.nan)
        for index, (column, value) in enumerate(plain_row(values, self).items()):
            if column in self._categories:
                assert not isinstance(value, float)
                row[index] = self._categories[column].index(values[column], value)
            elif value is not None:
                row[index] = value
        return row

    def misread_number(self, values: Mapping[str, Any]) -> str | None:
        """Return why a number in a row may be a category that has lost its text; None if it cannot.

        pandas reads the text 007 as the number 7, and 3.10 as 3.1. A number is read as a known
        category only if it is certain which one.

        Args:
            values: The values by column, as `encode_row` takes them.
        """
        for column, categories in self._categories.items():
            value = values.get(column)
            if known := categories.uncertain(value):
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
    """Return a row's numbers and category names, in the order of the format's columns.

    Args:
        values: The values by column. Other columns are left out.
        fmt: The columns.

    Returns:
        The numbers and names by column; None where a value is missing.

    Raises:
        MediaError: A column is missing, or its value cannot be read.
    """
    row: dict[str, float | str | None] = {}
    for index, column in enumerate(fmt.columns):
        if column not in values:
            raise MediaError(f"column {column!r} is not there")
        read = read_number if index < len(fmt.numeric) else read_name
        try:
            row[column] = read(values[column])
        except ValueError as error:
            raise MediaError(f"column {column!r} holds {error}") from None
    return row


def json_row(data: bytes) -> dict[str, Any]:
    """Return the row that a file holds as one JSON object.

    Raises:
        MediaError: The bytes are not a JSON object.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MediaError(f"not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise MediaError(f"JSON, but a {type(values).__name__} and no object of columns")
    return values


def decode_json_row(data: bytes, fmt: FittedTableFormat) -> np.ndarray:
    """Encode the row that a file holds as one JSON object.

    Raises:
        MediaError: The bytes are not a JSON object, or `FittedTableFormat.encode_row` refuses it.
    """
    return fmt.encode_row(json_row(data))


def fit_vocabulary(batches: Iterable["pa.RecordBatch"], fmt: TableFormat) -> TableVocabulary:
    """Fit statistics and vocabularies to training rows, in one pass with the memory of one batch.

    The result depends only on the rows, except that its last bits depend on how they are cut into
    batches. If categories are equally frequent, the first by name are kept.

    Args:
        batches: The training rows, with at least the columns of `fmt`.
        fmt: The columns.

    Raises:
        MediaError: A column is missing, has an unsuitable type, or has more than 1,000,000
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
    frequent = {
        column: sorted(counter, key=lambda name: (-counter[name], name))[: fmt.max_categories]
        for column, counter in counts.items()
    }
    return TableVocabulary(
        categories={column: tuple(sorted(names)) for column, names in frequent.items()},
        mean=tuple(moment.mean for moment in moments.values()),
        std=tuple(moment.std for moment in moments.values()),
    )


class _Moments:
    """The mean and variance of a stream of numbers (Chan, Golub and LeVeque's pairwise update)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Add float64 values `[n]`. NaN means missing."""
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
        """The population standard deviation; 1 if it is 0 or not finite."""
        std = math.sqrt(self._squares / self.count) if self.count else 0.0
        # Rounding can leave a small spread between equal values.
        return std if std > 1e-12 * abs(self.mean) and math.isfinite(std) else 1.0


def _numbers(column: "pa.Array", name: str) -> np.ndarray:
    """Return a column as float64, with NaN where a value is missing."""
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
