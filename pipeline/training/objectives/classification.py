"""Classification: each sample has one of several classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F

from perceiver_model import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from pipeline.training.objectives.answers import ClassAnswers, Shown
from pipeline.training.objectives.base import Objective, read_names
from pipeline.training.objectives.batch import Batch
from pipeline.training.objectives.input_views import InputViews, card_of, mean_log_probabilities
from pipeline.training.objectives.prediction import Prediction

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from pipeline.config.tree import Config
    from shards import ShardSet

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
        class_weights: The weight of each class in the loss, in the order of `classes`; empty if all
            samples weigh alike.
        test_time: The views over which answers are averaged; None for none.
    """

    name: ClassVar = "classify"
    target: ClassVar = "class"
    prediction: ClassVar = ClassPrediction
    metrics: ClassVar = ("accuracy",)
    num_sums: ClassVar = 2
    selection: ClassVar = "accuracy"
    higher_is_better: ClassVar = True
    worst: ClassVar = 0.0
    is_right_or_wrong: ClassVar = True
    card_fields: ClassVar = frozenset({"classifier", "classes"})
    optional_card_fields: ClassVar = frozenset({"test_time"})

    model_config: ClassifierConfig
    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    test_time: InputViews | None = None

    @classmethod
    def of(cls, config: "Config", shard_set: "ShardSet") -> Self:
        """Return the objective with the classes of the shard set.

        Raises:
            ValueError: A weight is for a class that the set does not have.
        """
        manifest, options = shard_set.manifest, config.trained_for
        assert options is not None
        classes = manifest.classes
        classifier = options.model(config, len(classes), manifest.config)
        weights = _class_weights(
            getattr(options, "class_weights", None), classes, manifest.class_counts["train"]
        )
        smoothing = config.training.label_smoothing
        return cls(classifier, classes, smoothing, weights, InputViews.of(options))

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
        views = InputViews.from_card(values.get("test_time"), classifier.input)
        return cls(classifier, classes, test_time=views)

    def to_card(self) -> dict[str, Any]:
        """Return the classifier's configuration, its classes, and the views if there are any."""
        return {
            "classifier": self.model_config.to_dict(),
            "classes": list(self.classes),
            **card_of(self.test_time),
        }

    def build_model(self, positions: torch.Tensor | None = None) -> PerceiverClassifier:
        """Return a classifier with new weights."""
        return PerceiverClassifier(self.model_config, positions=positions)

    def outputs(self, model: Any, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the logits, `[batch, classes]`; with views, those of the mean probabilities."""
        if training or self.test_time is None:
            logits: torch.Tensor = super().outputs(model, batch, training=training)
            return logits
        return mean_log_probabilities(self.test_time.stack(model, batch, self.model_config.input))

    def stream_outputs(
        self, model: Any, batch: Batch, state: torch.Tensor | None, starts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits after one part of each recording, and the latents."""
        logits, latents = model(
            batch.inputs, batch.mask, state=state, starts=starts, return_state=True
        )
        return logits, latents

    def losses(self, outputs: torch.Tensor, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the cross-entropy of each sample, with `label_smoothing` in training.

        The target of a mixed sample is the mean of two classes by their shares. The cross-entropy
        is linear in the target, so it is the mean of two cross-entropies. If classes have weights,
        both the shares and the weights count, and `loss_weights` has their sum.
        """
        own = self._cross_entropy(outputs, batch.targets, training=training)
        if batch.mix is None:
            return own
        partner = self._cross_entropy(outputs, batch.mix.targets, training=training)
        if not self.class_weights:
            return batch.mix.blend(own, partner)
        weights = self._weights_of(batch.targets), self._weights_of(batch.mix.targets)
        return batch.mix.blend(own * weights[0], partner * weights[1]) / batch.mix.blend(*weights)

    def _cross_entropy(
        self, outputs: torch.Tensor, targets: torch.Tensor, *, training: bool
    ) -> torch.Tensor:
        return F.cross_entropy(
            outputs,
            targets,
            ignore_index=NO_CLASS,
            reduction="none",
            label_smoothing=self.label_smoothing if training else 0.0,
        )

    def loss_weights(self, batch: Batch) -> torch.Tensor:
        """Return the weight of each sample's class, float32 `[batch]`."""
        if not self.class_weights:
            return batch.weights
        weights = self._weights_of(batch.targets)
        if batch.mix is not None:
            weights = batch.mix.blend(weights, self._weights_of(batch.mix.targets))
        return batch.weights * weights

    def weights_are_stored(self, *, mixed: bool) -> bool:
        """Return whether the weights are known before augmentation; see the base class."""
        return not (self.class_weights and mixed)

    def _weights_of(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the weights of classes, given by their numbers, float32 `[batch]`."""
        return torch.tensor(self.class_weights, device=targets.device)[targets.clamp(min=0)]

    def sums(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the numbers of right answers and of samples, `[2]`.

        The answer to a mixed sample is right by the share of the class that it names.
        """
        answers = outputs.argmax(dim=1)
        right = (answers == batch.targets).float()
        if batch.mix is not None:
            right = batch.mix.blend(right, (answers == batch.mix.targets).float())
        return torch.stack([(right * batch.weights).sum(), batch.weights.sum()])

    def metric_values(self, sums: Sequence[float], weight: float) -> tuple[float, ...]:
        """Return the accuracy. The weights of classes do not change it."""
        return (sums[0] / max(1.0, sums[1]),)

    def measures(self) -> "MetricCollection | None":
        """Return the macro F1 score, and the top-5 accuracy if there are more than 5 classes."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        num, found = len(self.classes), dict[str, Any]()
        if num > 1:
            found["macro_f1"] = MulticlassF1Score(num, average="macro", validate_args=False)
        if num > 5:
            found["top5_accuracy"] = MulticlassAccuracy(
                num, top_k=5, average="micro", validate_args=False
            )
        return MetricCollection(found) if found else None

    def measured(self, outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits and the class numbers of the good samples."""
        return outputs[batch.good], batch.targets[batch.good]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.classes

    def class_answers(self, outputs: torch.Tensor, batch: Batch) -> ClassAnswers:
        """Return the classes of the good samples."""
        return ClassAnswers.of(outputs, batch.targets, batch.good & (batch.targets != NO_CLASS))

    def shown(self, outputs: torch.Tensor, batch: Batch) -> list[Shown]:
        """Return the true class, the most probable one, and the probabilities of both."""
        found = []
        for row, number in zip(self.probabilities(outputs), batch.targets.tolist(), strict=True):
            best = int(row.argmax())
            answer = {"class": self.classes[best], "probability": float(row[best])}
            if number == NO_CLASS:
                found.append(Shown(None, answer))
                continue
            answer["probability_of_target"] = float(row[number])
            found.append(Shown(self.classes[number], answer))
        return found

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
        self, outputs: torch.Tensor, batch: Batch, classes: tuple[str, ...]
    ) -> np.ndarray:
        """Return 1 for each right answer, else 0.

        Classes are compared by name. A class that the model does not know is always wrong.
        """
        number_of = {name: number for number, name in enumerate(classes)}
        known = np.array([number_of.get(name, NO_CLASS) for name in self.classes])
        targets = batch.targets.cpu().numpy()
        answers = known[outputs.float().cpu().numpy().argmax(axis=1)]
        return ((answers == targets) & (targets >= 0)).astype(np.float64)

    def remarks(self, classes: tuple[str, ...]) -> list[str]:
        """Return which classes the model or the set does not have."""
        remarks = []
        if unknown := [name for name in classes if name not in self.classes]:
            remarks.append(
                f"does not know the classes {_some(unknown)}: their samples count as wrong for it"
            )
        if lost := [name for name in self.classes if name not in classes]:
            remarks.append(f"also knows the classes {_some(lost)}, which this run does not have")
        return remarks


def _class_weights(
    given: str | Mapping[str, float] | None, classes: tuple[str, ...], counts: Mapping[str, int]
) -> tuple[float, ...]:
    """Return the weight of each class.

    Args:
        given: The option `objective.class_weights`.
        classes: The names of the classes.
        counts: The number of training samples of each class that has any.

    Raises:
        ValueError: A weight is for a class that the set does not have.
    """
    if given is None:
        return ()
    if isinstance(given, Mapping):
        if unknown := [name for name in given if name not in classes]:
            raise ValueError(
                f"objective.class_weights names {_some(unknown)}; the shard set has the classes "
                f"{_some(list(classes))}"
            )
        return tuple(float(given.get(name, 1.0)) for name in classes)
    total = sum(counts.values())
    return tuple(total / (len(classes) * max(1, counts.get(name, 0))) for name in classes)


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{' …' * (len(names) > 5)}"
