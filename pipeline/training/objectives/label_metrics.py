"""Metrics of labels: means over the labels of a score of each label's ranking of the samples."""

from abc import abstractmethod
from typing import Any

import torch
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat


class _MeanOverLabels(Metric):
    """The mean over the labels for which the score is defined; NaN if there are none."""

    full_state_update = False
    probabilities: list[torch.Tensor]
    marks: list[torch.Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("probabilities", default=[], dist_reduce_fx="cat")
        self.add_state("marks", default=[], dist_reduce_fx="cat")

    def update(self, probabilities: torch.Tensor, marks: torch.Tensor) -> None:
        """Add samples.

        Args:
            probabilities: float64 `[samples, labels]`.
            marks: Which labels each sample has, bool `[samples, labels]`.
        """
        self.probabilities.append(probabilities)
        self.marks.append(marks)

    def compute(self) -> torch.Tensor:
        """Return the mean, a scalar."""
        probabilities, marks = dim_zero_cat(self.probabilities), dim_zero_cat(self.marks).bool()
        scores = [
            self._score(own, mark.long())
            for own, mark in zip(probabilities.T, marks.T, strict=True)
            if self._is_defined(mark)
        ]
        return torch.stack(scores).double().mean() if scores else torch.tensor(torch.nan)

    @abstractmethod
    def _score(self, probabilities: torch.Tensor, marks: torch.Tensor) -> torch.Tensor: ...

    def _is_defined(self, marks: torch.Tensor) -> bool:
        return bool(marks.any())


class MeanAveragePrecision(_MeanOverLabels):
    """The mean average precision, as for AudioSet. It leaves out labels that no sample has."""

    def _score(self, probabilities: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        return binary_average_precision(probabilities, marks)


class MeanAUC(_MeanOverLabels):
    """The mean area under the ROC curve. It leaves out labels that all or no samples have."""

    def _score(self, probabilities: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        return binary_auroc(probabilities, marks)

    def _is_defined(self, marks: torch.Tensor) -> bool:
        return bool(marks.any()) and not bool(marks.all())
