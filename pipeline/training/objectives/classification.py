"""Classification: each sample has one of several classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F

from perceiver_model import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from pipeline.training.objectives.base import Batch, Objective, Prediction, read_names

if TYPE_CHECKING:
    from pipeline.config.tree import Config
    from shards.manifest import Manifest

NO_CLASS = -1
"""The target of padding and of samples that could not be read."""


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The class of one input.

    Attributes:
        source: The path; `bytes[N]` for the N-th input given as bytes; `row[N]` for one given as a
            row.
        label: The name of the most probable class; None if the input cannot be used.
        probability: The probability of that class.
        probabilities: The probability of every class, by name.
        error: Why the input cannot be used; None if it can.
    """

    headings: ClassVar = {"label": "class"}
    source: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float] | None
    error: str | None


@dataclass(frozen=True)
class Classification(Objective):
    """Train with the cross-entropy of the classes, and select by accuracy.

    Attributes:
        model_config: The classifier's configuration.
        classes: The names of the classes, one for each output of the classifier.
        label_smoothing: The label smoothing of the training loss only.
    """

    name: ClassVar = "classify"
    target: ClassVar = "class"
    prediction: ClassVar = ClassPrediction
    metrics: ClassVar = ("accuracy",)
    num_sums: ClassVar = 1
    selection: ClassVar = "accuracy"
    higher_is_better: ClassVar = True
    worst: ClassVar = 0.0
    is_right_or_wrong: ClassVar = True
    card_fields: ClassVar = frozenset({"classifier", "classes"})

    model_config: ClassifierConfig
    classes: tuple[str, ...]
    label_smoothing: float = 0.0

    @classmethod
    def of(cls, config: "Config", manifest: "Manifest") -> Self:
        """Return the objective with the classes of the shard set."""
        classifier = config.classifier(len(manifest.classes), manifest.config)
        return cls(classifier, manifest.classes, config.training.label_smoothing)

    @classmethod
    def from_card(cls, values: Mapping[str, Any]) -> Self:
        """Return the objective of a registered model.

        Raises:
            ValueError: The number of classes differs from the number of outputs.
        """
        classes = read_names(values["classes"])
        classifier = ClassifierConfig.from_dict(values["classifier"])
        if classifier.num_classes != len(classes):
            raise ValueError(f"{len(classes)} classes for {classifier.num_classes} outputs")
        return cls(classifier, classes)

    def to_card(self) -> dict[str, Any]:
        """Return the classifier's configuration and its classes."""
        return {"classifier": self.model_config.to_dict(), "classes": list(self.classes)}

    def build_model(self, positions: torch.Tensor | None = None) -> PerceiverClassifier:
        """Return a classifier with new weights."""
        return PerceiverClassifier(self.model_config, positions=positions)

    def losses(self, outputs: torch.Tensor, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the cross-entropy of each sample, with `label_smoothing` in training."""
        return F.cross_entropy(
            outputs,
            batch.targets,
            ignore_index=NO_CLASS,
            reduction="none",
            label_smoothing=self.label_smoothing if training else 0.0,
        )

    def sums(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the number of right answers, `[1]`."""
        right = outputs.argmax(dim=1) == batch.targets
        return (right * batch.weights).sum().unsqueeze(0)

    def metric_values(self, sums: Sequence[float], weight: float) -> tuple[float, ...]:
        """Return the accuracy."""
        return (sums[0] / weight,)

    def predictions(self, outputs: torch.Tensor, sources: Sequence[str]) -> list[Prediction]:
        """Return the most probable class and the probability of every class."""
        return [
            self._prediction(source, row)
            for source, row in zip(sources, self.probabilities(outputs), strict=True)
        ]

    def probabilities(self, outputs: torch.Tensor) -> np.ndarray:
        """Return the probabilities, float64 `[batch, classes]`. Each row sums to 1."""
        return outputs.double().softmax(dim=1).cpu().numpy()

    def _prediction(self, source: str, probabilities: np.ndarray) -> ClassPrediction:
        by_class = dict(zip(self.classes, map(float, probabilities), strict=True))
        label = self.classes[int(probabilities.argmax())]
        return ClassPrediction(source, label, by_class[label], by_class, None)

    def sample_values(
        self, outputs: torch.Tensor, targets: np.ndarray, classes: tuple[str, ...]
    ) -> np.ndarray:
        """Return 1 for each right answer, else 0.

        Classes are compared by name. A class that the model does not know is always wrong.
        """
        number_of = {name: number for number, name in enumerate(classes)}
        known = np.array([number_of.get(name, NO_CLASS) for name in self.classes])
        answers = known[outputs.float().cpu().numpy().argmax(axis=1)]
        return ((answers == targets) & (targets >= 0)).astype(np.float64)

    def remarks(self, classes: tuple[str, ...]) -> list[str]:
        """Return which classes the model or the set does not have."""
        said = []
        if unknown := [name for name in classes if name not in self.classes]:
            said.append(
                f"does not know the classes {_some(unknown)}: their samples count as wrong for it"
            )
        if lost := [name for name in self.classes if name not in classes]:
            said.append(f"also knows the classes {_some(lost)}, which this run does not tell")
        return said


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{' …' * (len(names) > 5)}"
