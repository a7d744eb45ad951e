"""What an evaluation reports beside its metrics: by class, by label or by number."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pipeline.training.objectives import Batch, Objective
from pipeline.training.objectives.multi_label import MultiLabel
from pipeline.training.objectives.regression import Regression
from pipeline.training.reports.calibration import Calibration

MAX_CONFUSED = 2000
"""The largest number of classes for which confusions are counted."""


class Details(ABC):
    """What one rank has seen. It can be pickled, and joined with that of other ranks.

    Args:
        objective: What the model is trained for.
    """

    @abstractmethod
    def __init__(self, objective: Any) -> None: ...

    @abstractmethod
    def update(self, objective: Any, outputs: Any, samples: Batch) -> None:
        """Add a batch. Samples of weight 0 do not count."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Add what another rank has seen."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Return `classes`, `confusion_matrix` and `calibration`; a field without sense is None."""


class ClassDetails(Details):
    """Precision, recall and F1 of classes, their confusions, and the calibration.

    They are scikit-learn's: what has no samples to divide by is 0.
    """

    def __init__(self, objective: Objective) -> None:
        self.names = objective.class_names
        self.has_classes = bool(self.names)
        self.calibration: Calibration | None = None
        num = len(self.names)
        self.confusions = np.zeros((num, num) if num <= MAX_CONFUSED else (0, 0), np.int64)
        self.counts = np.zeros((3, num), np.int64)
        """The items that have each class, those that got it, and those of both."""

    def update(self, objective: Objective, outputs: Any, samples: Batch) -> None:
        """Add a batch."""
        found = objective.class_answers(outputs, samples)
        if found is None:
            return
        targets, answers, confidences = (part.cpu().numpy() for part in found)
        right = answers == targets
        if self.calibration is None:
            self.calibration = Calibration()
        finite = np.isfinite(confidences)
        self.calibration.update(confidences[finite], right[finite])
        if not self.has_classes:
            return
        num = len(self.names)
        for row, numbers in zip(self.counts, (targets, answers, targets[right]), strict=True):
            row += np.bincount(numbers, minlength=num)
        if self.confusions.size:
            pairs = np.bincount(targets * num + answers, minlength=num * num)
            self.confusions += pairs.reshape(num, num)

    def merge(self, other: "ClassDetails") -> None:
        """Add what another rank has seen."""
        self.confusions += other.confusions
        self.counts += other.counts
        if self.calibration is None:
            self.calibration = other.calibration
        elif other.calibration is not None:
            self.calibration.merge(other.calibration)

    def result(self) -> dict[str, Any]:
        """Return each class's `precision`, `recall`, `f1` and `support`, and the confusions.

        The matrix has a row for each true class, and a column for each answer.
        """
        support, answered, right = self.counts
        precision, recall = _share(right, answered), _share(right, support)
        f1 = _share(2 * right, support + answered)
        columns = zip(self.names, precision, recall, f1, support, strict=True)
        classes = [
            {"name": n, "precision": float(p), "recall": float(r), "f1": float(f),
             "support": int(s)}
            for n, p, r, f, s in columns
        ]  # fmt: skip
        matrix = {"classes": list(self.names), "counts": self.confusions.tolist()}
        return {
            "classes": classes or None,
            "confusion_matrix": matrix if self.confusions.size else None,
            "calibration": self.calibration.result() if self.calibration else None,
        }


class LabelDetails(Details):
    """Average precision, area under the ROC curve, precision, recall and F1 of every label.

    The calibration is that of the probabilities of all pairs of a sample and a label.
    """

    def __init__(self, objective: MultiLabel) -> None:
        self.names, self.threshold = objective.labels, objective.threshold
        self.probabilities: list[np.ndarray] = []
        self.marks: list[np.ndarray] = []

    def update(self, objective: MultiLabel, outputs: torch.Tensor, samples: Batch) -> None:
        """Add a batch."""
        probabilities, marks = objective.measured(outputs, samples)
        self.probabilities.append(probabilities.cpu().numpy())
        self.marks.append(marks.cpu().numpy())

    def merge(self, other: "LabelDetails") -> None:
        """Add what another rank has seen."""
        self.probabilities += other.probabilities
        self.marks += other.marks

    def result(self) -> dict[str, Any]:
        """Return the values of each label, and its confusions at the threshold.

        `average_precision` is None for a label that no sample has, and `auc` also for one that all
        have. Each confusion matrix is `[[true negatives, false positives], [false negatives, true
        positives]]`, as in scikit-learn.
        """
        from torchmetrics.functional.classification import binary_auroc, binary_average_precision

        probabilities, marks = np.concatenate(self.probabilities), np.concatenate(self.marks)
        answers = probabilities >= self.threshold
        labels, matrices = [], []
        for name, scores, mark, answer in zip(
            self.names, probabilities.T, marks.T, answers.T, strict=True
        ):
            pair = torch.from_numpy(scores.copy()), torch.from_numpy(mark.astype(np.int64))
            right, support, answered = (mark & answer).sum(), mark.sum(), answer.sum()
            has, lacks = bool(mark.any()), bool((~mark).any())
            labels.append({
                "name": name,
                "precision": float(_share(right, answered)),
                "recall": float(_share(right, support)),
                "f1": float(_share(2 * right, support + answered)),
                "support": int(support),
                "average_precision": float(binary_average_precision(*pair)) if has else None,
                "auc": float(binary_auroc(*pair)) if has and lacks else None,
            })  # fmt: skip
            wrong = int(answered - right)
            lost = int(support - right)
            matrices.append([[len(mark) - int(support) - wrong, wrong], [lost, int(right)]])
        calibration = Calibration()
        finite = np.isfinite(probabilities)
        calibration.update(probabilities[finite], marks[finite])
        return {
            "classes": labels,
            "confusion_matrix": {"classes": list(self.names), "counts_by_label": matrices},
            "calibration": calibration.result(),
        }


class NumberDetails(Details):
    """The errors of every number of a regression, in its own unit."""

    def __init__(self, objective: Regression) -> None:
        self.names = objective.names
        self.answers: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []

    def update(self, objective: Regression, outputs: torch.Tensor, samples: Batch) -> None:
        """Add a batch."""
        answers, targets = objective.measured(outputs, samples)
        self.answers.append(answers.cpu().numpy())
        self.targets.append(targets.cpu().numpy())

    def merge(self, other: "NumberDetails") -> None:
        """Add what another rank has seen."""
        self.answers += other.answers
        self.targets += other.targets

    def result(self) -> dict[str, Any]:
        """Return `mae`, `rmse`, `r2` and `bias` (the mean of answer − target) of each number.

        R² is None if all targets are equal.
        """
        answers, targets = np.concatenate(self.answers), np.concatenate(self.targets)
        numbers = []
        for name, answer, target in zip(self.names, answers.T, targets.T, strict=True):
            errors = answer - target
            if not len(errors):
                numbers.append({"name": name, "support": 0})
                continue
            spread = ((target - target.mean()) ** 2).sum()
            numbers.append({
                "name": name,
                "mae": float(np.abs(errors).mean()),
                "rmse": float(np.sqrt((errors**2).mean())),
                "r2": float(1 - (errors**2).sum() / spread) if spread > 0 else None,
                "bias": float(errors.mean()),
                "support": len(errors),
            })  # fmt: skip
        return {"classes": numbers, "confusion_matrix": None, "calibration": None}


DETAILS: dict[str, type[Details]] = {"multi_label": LabelDetails, "regress": NumberDetails}
"""The details of objectives whose answers are not classes."""


def details_of(objective: Objective) -> Details:
    """Return the details of an objective, without any sample yet."""
    return DETAILS.get(objective.name, ClassDetails)(objective)


def joined_details(details: Details) -> Details | None:
    """Return the details of all ranks on rank 0, None on the others."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, details)
    if dist.get_rank():
        return None
    first: Details = everyone[0]
    for other in everyone[1:]:
        first.merge(other)
    return first


def _share(part: Any, whole: Any) -> np.ndarray:
    """Return part / whole, and 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) > 0)
