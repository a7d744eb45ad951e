"""The mean of one column of a matrix of samples' values."""

from typing import Any

import torch
from torchmetrics import Metric


class ColumnMean(Metric):
    """The mean of a column over the samples that have a value there; NaN if none has.

    Args:
        column: The index of the column.
        **options: Options of torchmetrics.
    """

    full_state_update = False
    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, column: int, **options: Any) -> None:
        super().__init__(**options)
        self.column = column
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: torch.Tensor, present: torch.Tensor) -> None:
        """Add samples.

        Args:
            values: float64 `[samples, columns]`.
            present: Which values there are, bool `[samples, columns]`.
        """
        own, has = values[:, self.column], present[:, self.column]
        self.total += own[has].sum()
        self.count += has.sum()

    def compute(self) -> torch.Tensor:
        """Return the mean, a scalar."""
        return self.total / self.count
