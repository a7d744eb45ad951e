"""R², whatever the offset of the targets."""

from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics import R2Score


class ShiftedR2Score(R2Score):
    """The mean over the numbers of R².

    torchmetrics subtracts the square of a mean from a mean of squares. Numbers far from 0, such as
    years, would lose most of their digits. R² is the same if a constant is subtracted before.

    Args:
        offsets: About the mean of each number.
        **options: Options of torchmetrics.
    """

    def __init__(self, offsets: Sequence[float], **options: Any) -> None:
        super().__init__(**options)
        self.offsets = tuple(offsets)

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Add samples: predicted and true numbers, float64 `[samples, numbers]`."""
        offsets = torch.tensor(self.offsets, dtype=target.dtype, device=target.device)
        super().update(preds - offsets, target - offsets)
