"""Multi-label classification: each sample has any number of labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F

from perceiver_model import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from pipeline.training.objectives.answers import Shown
from pipeline.training.objectives.base import Objective, read_names
from pipeline.training.objectives.batch import Batch
from pipeline.training.objectives.input_views import InputViews, card_of, mean_log_odds
from pipeline.training.objectives.prediction import Prediction, answer_of

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from pipeline.config.tree import Config
    from shards import ShardSet


@dataclass(frozen=True)
class LabelsPrediction(Prediction):
    """The labels of one input.

    Attributes:
        source: The same as in `ClassPrediction`.
        labels: The names of the labels whose probability reaches the threshold.
        probabilities: The probability of every label, by name.
        error: Why the input cannot be used; None if it can.
    """

    flat: ClassVar = ("labels",)
    source: str
    labels: list[str] | None
    probabilities: dict[str, float] | None
    error: str | None


@dataclass(frozen=True)
class MultiLabel(Objective):
    """Train with the binary cross-entropy of each label; select by the mean average precision.

    Attributes:
        model_config: The configuration of a classifier with one output for each label.
        labels: The names of the labels.
        threshold: The smallest probability of a label that a prediction names.
        test_time: The views over which answers are averaged; None for none.
    """

    name: ClassVar = "multi_label"
    target: ClassVar = "multi_label"
    prediction: ClassVar = LabelsPrediction
    selection: ClassVar = "mean_average_precision"
    sample_metric: ClassVar = "sample_ranking_precision"
    worst: ClassVar = 0.0
    card_fields: ClassVar = frozenset({"classifier", "labels", "threshold"})
    optional_card_fields: ClassVar = frozenset({"test_time"})

    model_config: ClassifierConfig
    labels: tuple[str, ...]
    threshold: float = 0.5
    test_time: InputViews | None = None

    @classmethod
    def of(cls, config: "Config", shard_set: "ShardSet") -> Self:
        """Return the objective with the labels of the shard set."""
        options, manifest = config.trained_for, shard_set.manifest
        assert options is not None
        classifier = options.model(config, len(manifest.classes), manifest.config)
        threshold = getattr(options, "threshold", 0.5)
        return cls(classifier, manifest.classes, threshold, InputViews.of(options))

    @classmethod
    def from_card(cls, values: Mapping[str, Any]) -> Self:
        """Return the objective of a registered model.

        Raises:
            ValueError: The number of labels differs from the number of outputs, or the threshold is
                no probability.
        """
        labels = read_names(values["labels"])
        classifier = ClassifierConfig.from_dict(values["classifier"])
        threshold = float(values["threshold"])
        if classifier.num_classes != len(labels):
            raise ValueError(f"{len(labels)} labels for {classifier.num_classes} outputs")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}; must be between 0 and 1")
        views = InputViews.from_card(values.get("test_time"), classifier.input)
        return cls(classifier, labels, threshold, views)

    def to_card(self) -> dict[str, Any]:
        """Return the classifier's configuration, its labels and the threshold."""
        return {
            "classifier": self.model_config.to_dict(),
            "labels": list(self.labels),
            "threshold": self.threshold,
            **card_of(self.test_time),
        }

    def build_model(self, positions: torch.Tensor | None = None) -> PerceiverClassifier:
        """Return a classifier with new weights."""
        return PerceiverClassifier(self.model_config, positions=positions)

    def outputs(self, model: Any, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the logits, `[batch, labels]`; with views, those of the mean probabilities."""
        if training or self.test_time is None:
            logits: torch.Tensor = super().outputs(model, batch, training=training)
            return logits
        return mean_log_odds(self.test_time.stack(model, batch, self.model_config.input))

    def losses(self, outputs: torch.Tensor, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the mean over the labels of the binary cross-entropy, `[batch]`.

        A label of a mixed sample has the share of those of the two samples that have it.
        """
        marks = batch.targets.to(outputs.dtype)
        if batch.mix is not None:
            share = batch.mix.shares.to(outputs.dtype)[:, None]
            marks = share * marks + (1 - share) * batch.mix.targets.to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, marks, reduction="none").mean(dim=1)

    def measures(self) -> "MetricCollection":
        """Return the mean average precision and the mean area under the ROC curve."""
        from torchmetrics import MetricCollection

        from pipeline.training.objectives.label_metrics import MeanAUC, MeanAveragePrecision

        return MetricCollection(
            {"mean_average_precision": MeanAveragePrecision(), "mean_auc": MeanAUC()}
        )

    def measured(self, outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the probabilities, float64, and the marks, bool, of the good samples."""
        return outputs[batch.good].double().sigmoid(), batch.targets[batch.good].bool()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the labels."""
        return self.labels

    def shown(self, outputs: torch.Tensor, batch: Batch) -> list[Shown]:
        """Return the labels of each sample, and the answer."""
        found = self.predictions(outputs, [""] * len(outputs))
        return [
            Shown(
                [name for name, mark in zip(self.labels, row, strict=True) if mark],
                answer_of(prediction),
            )
            for row, prediction in zip(batch.targets.tolist(), found, strict=True)
        ]

    def predictions(self, outputs: torch.Tensor, sources: Sequence[str]) -> list[Prediction]:
        """Return the labels above the threshold, and the probability of every label."""
        found: list[Prediction] = []
        for source, row in zip(sources, outputs.double().sigmoid().tolist(), strict=True):
            by_label = dict(zip(self.labels, row, strict=True))
            labels = [name for name, share in by_label.items() if share >= self.threshold]
            found.append(LabelsPrediction(source, labels, by_label, None))
        return found

    def sample_values(
        self, outputs: torch.Tensor, batch: Batch, classes: tuple[str, ...]
    ) -> np.ndarray:
        """Return the ranking precision of each sample.

        It is the mean, over the sample's labels, of the share of its labels among those that are
        ranked at least as high. It is 1 for a sample that has all labels or none. Labels are
        compared by name. A label that the model does not know is ranked last.
        """
        scores = outputs.double().cpu().numpy()
        column = {name: number for number, name in enumerate(self.labels)}
        known = np.full((len(scores), len(classes)), -np.inf)
        for number, name in enumerate(classes):
            if name in column:
                known[:, number] = scores[:, column[name]]
        marks = batch.targets.cpu().numpy().astype(bool)
        return np.array([_ranking_precision(*pair) for pair in zip(known, marks, strict=True)])


def _ranking_precision(scores: np.ndarray, marks: np.ndarray) -> float:
    """Return scikit-learn's `label_ranking_average_precision_score` of one sample."""
    if marks.all() or not marks.any():
        return 1.0
    at_least = scores[None, :] >= scores[marks][:, None]
    return float((at_least[:, marks].sum(axis=1) / at_least.sum(axis=1)).mean())
