"""The rows of a table as tokens: one token per column."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.adapters.checks import Tokens, check_mask, check_shape
from perceiver_model.adapters.configs import ColumnsConfig, TableInput
from perceiver_model.constants import Float32Constant


class TableRows(NamedTuple):
    """Rows of a table.

    Attributes:
        numeric: The numeric values, floating point `[batch, num_numeric]`. NaN means missing.
        categorical: The category indices, int64 `[batch, len(num_categories)]`, from 0. A negative
            index means missing. An index of `num_categories` or above means an unknown value.
    """

    numeric: torch.Tensor
    categorical: torch.Tensor


class ColumnAdapter(nn.Module):
    """One token per column, as `ColumnsConfig` describes. The numeric columns come first."""

    category_starts: torch.Tensor
    num_categories: torch.Tensor

    def __init__(self, table: TableInput, columns: ColumnsConfig) -> None:
        super().__init__()
        self.num_numeric = table.num_numeric
        self.mean = Float32Constant(torch.tensor(table.mean))
        self.std = Float32Constant(torch.tensor(table.std))
        counts = torch.tensor(table.num_categories, dtype=torch.int64)
        # Each column has one embedding per category, then one for all unknown values.
        self.register_buffer("num_categories", counts, persistent=False)
        self.register_buffer("category_starts", (counts + 1).cumsum(0) - (counts + 1), False)
        channels = columns.num_channels
        self.numeric = _learned(table.num_numeric, channels)
        self.categories = _learned(sum(n + 1 for n in table.num_categories), channels)
        self.missing = _learned(table.num_columns * (columns.missing == "learned"), channels)
        self.columns = nn.Parameter(_vectors(table.num_columns, channels))
        self.frequencies = self.waves = None
        if columns.num_bands and table.num_numeric:
            bands = torch.randn(table.num_numeric, columns.num_bands)
            self.frequencies = nn.Parameter(bands * columns.frequency_std)
            waves = torch.empty(table.num_numeric, 2 * columns.num_bands, channels)
            self.waves = nn.Parameter(nn.init.normal_(waves, std=waves.shape[1] ** -0.5))

    def forward(self, rows: TableRows, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, columns, num_channels]` and the token mask.

        Args:
            rows: The rows. Values that are missing in them need no mask.
            mask: The columns to read, bool `[batch, columns]`, with the numeric columns first.
                False leaves a column out, whatever its value. None reads all columns.

        Raises:
            ValueError: If a type, a shape or a dtype is wrong.
        """
        numeric, categorical = self._check(rows, mask)
        present = torch.cat([~numeric.isnan(), categorical >= 0], dim=1)
        valid = present if mask is None else present & mask
        values = self._values(numeric, categorical, valid)
        if self.missing is None:
            token_mask: torch.Tensor | None = valid
        else:
            values, token_mask = torch.where(present.unsqueeze(-1), values, self.missing), mask
        content = values + self.columns
        if token_mask is not None:
            content = content.masked_fill(~token_mask.unsqueeze(-1), 0.0)
        return content, token_mask

    def _values(
        self, numeric: torch.Tensor, categorical: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        """Return the values `[batch, columns, num_channels]` without their columns' embeddings."""
        numeric_valid, categorical_valid = valid.tensor_split([self.num_numeric], dim=1)
        values = []
        if self.numeric is not None:
            standardised = (numeric - self.mean()) / self.std()
            standardised = standardised.masked_fill(~numeric_valid, 0.0).to(self.numeric.dtype)
            numbers = standardised.unsqueeze(-1) * self.numeric
            if self.frequencies is not None:
                angles = 2 * math.pi * standardised.unsqueeze(-1) * self.frequencies
                waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
                numbers = numbers + torch.einsum("bck,ckd->bcd", waves, self.waves)
            values.append(numbers)
        if self.categories is not None:
            indices = categorical.masked_fill(~categorical_valid, 0)
            indices = self.category_starts + torch.minimum(indices, self.num_categories)
            values.append(F.embedding(indices, self.categories))
        return torch.cat(values, dim=1)

    def _check(
        self, rows: TableRows, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the numeric and the categorical values.

        Raises:
            ValueError: If a type, a shape or a dtype is wrong.
        """
        if not isinstance(rows, TableRows):
            raise ValueError(
                f"inputs of type {type(rows).__name__}: expected TableRows(numeric, categorical)"
            )
        numeric, categorical = rows
        check_shape("numeric", numeric, (self.num_numeric,))
        check_shape("categorical", categorical, (len(self.num_categories),))
        if not numeric.is_floating_point():
            raise ValueError(f"numeric of dtype {numeric.dtype}: expected floating")
        if categorical.dtype != torch.int64:
            raise ValueError(f"categorical of dtype {categorical.dtype}: expected torch.int64")
        num_rows = numeric.shape[0]
        if num_rows != categorical.shape[0]:
            raise ValueError(
                f"numeric has {num_rows} rows and categorical {categorical.shape[0]}: expected "
                "the same number"
            )
        check_mask(mask, torch.Size([num_rows, len(self.columns)]))
        return numeric, categorical


def _learned(rows: int, channels: int) -> nn.Parameter | None:
    """Return learned vectors, or None for zero rows.

    DeepSpeed fails on empty parameters.
    """
    return nn.Parameter(_vectors(rows, channels)) if rows else None


def _vectors(rows: int, channels: int) -> torch.Tensor:
    """Draw vectors `[rows, channels]` from a truncated normal distribution with std 0.02."""
    return nn.init.trunc_normal_(torch.empty(rows, channels), std=0.02, a=-2.0, b=2.0)
