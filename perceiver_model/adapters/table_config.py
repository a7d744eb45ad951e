"""The configuration of table rows, with one token per column. It does not import torch."""

from typing import Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.config_checks import (
    Count,
    Number,
    PositiveNumber,
    WholeNumber,
    check_length,
    config_dataclass,
    refusal,
)
from perceiver_model.layer_flops import matmul_flops


@config_dataclass
class TableInput:
    """Rows of a table with numeric and categorical columns, given as `adapters.table.TableRows`.

    A numeric value is standardised as `(value - mean) / std`.

    Attributes:
        kind: Must be `table`.
        num_numeric: The number of numeric columns, at least 0.
        mean: One number for each numeric column, or one for all of them.
        std: One number above 0 for each numeric column, or one for all of them.
        num_categories: The number of known values of each categorical column, at least 1.
    """

    kind: Literal["table"] = "table"
    num_numeric: WholeNumber = 0
    mean: tuple[Number, ...] = (0.0,)
    std: tuple[PositiveNumber, ...] = (1.0,)
    num_categories: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        check_length(self, "mean", 1, self.num_numeric)
        check_length(self, "std", 1, self.num_numeric)
        if self.num_columns == 0:
            raise refusal(self, "num_numeric", "at least 1 where num_categories is empty")

    @property
    def num_columns(self) -> int:
        """The number of numeric and categorical columns."""
        return self.num_numeric + len(self.num_categories)


@config_dataclass
class ColumnsConfig(AdapterBase):
    """One token per column. The numeric columns come first.

    A numeric token is the standardised value times a learned vector, plus the embedding of the
    column. A categorical token is the embedding of the value plus the embedding of the column.

    With `num_bands`, a numeric token also gets sines and cosines of its value, at frequencies that
    are learned for its column, times learned vectors (Gorishniy et al., arXiv 2203.05556). Small
    differences between values then count, as they do for decision trees.

    Attributes:
        kind: Must be `columns`.
        num_bands: The number of learned frequencies of each numeric column; 0 for none.
        frequency_std: The standard deviation of the normal distribution from which the frequencies
            are drawn, in periods for each standard deviation of the column, above 0.
        num_channels: The number of channels of the learned vectors and of a token, at least 1.
        missing: `masked` masks the tokens of missing values. `learned` replaces a missing value by
            a vector that is learned for the column, so that a model can learn from the absence.
    """

    reads = (TableInput,)
    holds_positions = True

    kind: Literal["columns"] = "columns"
    num_channels: Count = 64
    missing: Literal["masked", "learned"] = "masked"
    num_bands: WholeNumber = 0
    frequency_std: PositiveNumber = 0.5

    def token_grid(self, table: TableInput) -> tuple[int, ...]:
        """Return the number of columns, `(columns,)`."""
        return (table.num_columns,)

    def content_channels(self, table: TableInput) -> int:
        """Return the number of channels of the learned vectors."""
        return self.num_channels

    def flops(self, table: TableInput) -> int:
        """Return the FLOPs of the products with the sines and cosines."""
        return matmul_flops(table.num_numeric, 2 * self.num_bands, self.num_channels)
