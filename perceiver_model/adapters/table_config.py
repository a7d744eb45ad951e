"""Rows of a table as input, one token per column: configuration, free of torch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.config_checks import (
    FORBID_EXTRA,
    check_counts,
    check_numbers,
    check_one_of,
    check_positive_integers,
    refusal,
)


@dataclass(frozen=True, kw_only=True)
class TableInput:
    """Rows of a table with numeric and categorical columns, as `adapters.table.TableRows`.

    A numeric value is standardised as (value - mean) / std.

    Attributes:
        kind: must be `table`.
        num_numeric: numeric columns, at least 0.
        mean: one number for every numeric column, or one for all.
        std: one number above 0 for every numeric column, or one for all.
        num_categories: for each categorical column the number of its known values, at least 1.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["table"] = "table"
    num_numeric: int = 0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    num_categories: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_counts(self, "num_numeric")
        check_numbers(self, "mean", (1, self.num_numeric))
        check_numbers(self, "std", (1, self.num_numeric), above=0)
        if not isinstance(self.num_categories, tuple) or not all(
            isinstance(count, int) and not isinstance(count, bool) and count >= 1
            for count in self.num_categories
        ):
            raise refusal(self, "num_categories", "a tuple of integers of at least 1")
        if self.num_columns == 0:
            raise refusal(self, "num_numeric", "at least 1 where num_categories is empty")

    @property
    def num_columns(self) -> int:
        """Numeric and categorical columns."""
        return self.num_numeric + len(self.num_categories)


@dataclass(frozen=True, kw_only=True)
class Columns(AdapterBase):
    """One token per column, the numeric ones first, of `num_channels` channels.

    A numeric token is its standardised value times a learned vector, plus the column's embedding;
    a categorical one is its value's embedding plus the column's.

    Attributes:
        kind: must be `columns`.
        num_channels: channels of the learned vectors and so of a token, at least 1.
        missing: `masked` leaves the tokens of missing values out. `learned` puts the column's own
            learned vector in the place of the value, so that a model may learn from what is
            missing.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA
    reads = (TableInput,)
    holds_positions = True

    kind: Literal["columns"] = "columns"
    num_channels: int = 64
    missing: Literal["masked", "learned"] = "masked"

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_channels")
        check_one_of(self, "missing", "masked", "learned")

    def token_grid(self, table: TableInput) -> tuple[int, ...]:
        """The number of columns."""
        return (table.num_columns,)

    def content_channels(self, table: TableInput) -> int:
        """The channels of the learned vectors."""
        return self.num_channels
