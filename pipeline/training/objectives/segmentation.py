"""Segmentation: every pixel of an image has a class."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from perceiver_model import DensePredictor
from perceiver_model.families.dense_config import DenseConfig
from pipeline.media.image.masks import UNLABELLED
from pipeline.training.objectives.answers import ClassAnswers, Shown
from pipeline.training.objectives.base import Objective, read_names
from pipeline.training.objectives.batch import Batch
from pipeline.training.objectives.prediction import Prediction, answer_of

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from pipeline.config.tree import Config
    from shards import ShardSet

NO_CLASS = -1
"""The target of pixels that do not count."""


@dataclass(frozen=True)
class MaskPrediction(Prediction):
    """The classes of one image's pixels.

    Attributes:
        source: The same as in `ClassPrediction`.
        mask: A grey PNG image whose values are the numbers of the classes, at the size of the
            model's input.
        shares: The share of the pixels that each class has, by name.
        error: Why the input cannot be used; None if it can.
    """

    flat: ClassVar = ("shares",)
    source: str
    mask: bytes | None
    shares: dict[str, float] | None
    error: str | None


@dataclass(frozen=True)
class Segmentation(Objective):
    """Train with the cross-entropy of the pixels' classes; select by the mean IoU.

    The loss is the mean over all pixels that count, and not over images.

    Attributes:
        model_config: The configuration of a model with one output for each pixel.
        classes: The names of the classes.
        ignored: The numbers of the classes that do not count.
        label_smoothing: The label smoothing of the training loss only.
    """

    name: ClassVar = "segment"
    target: ClassVar = "mask"
    prediction: ClassVar = MaskPrediction
    metrics: ClassVar = ("pixel_accuracy",)
    num_sums: ClassVar = 2
    selection: ClassVar = "mean_iou"
    sample_metric: ClassVar = "sample_mean_iou"
    worst: ClassVar = 0.0
    card_fields: ClassVar = frozenset({"model", "classes"})

    model_config: DenseConfig
    classes: tuple[str, ...]
    ignored: tuple[int, ...] = ()
    label_smoothing: float = 0.0

    @classmethod
    def of(cls, config: "Config", shard_set: "ShardSet") -> Self:
        """Return the objective with the classes of the shard set."""
        options, manifest = config.trained_for, shard_set.manifest
        assert options is not None
        classes = manifest.classes
        names = getattr(options, "ignored_classes", ())
        return cls(
            options.model(config, len(classes), manifest.config),
            classes,
            tuple(classes.index(name) for name in names),
            config.training.label_smoothing,
        )

    @classmethod
    def from_card(cls, values: Mapping[str, Any]) -> Self:
        """Return the objective of a registered model.

        Raises:
            ValueError: The number of classes differs from the number of outputs.
        """
        classes = read_names(values["classes"])
        model = DenseConfig.from_dict(values["model"])
        if not 1 <= model.output_channels == len(classes) <= UNLABELLED:
            raise ValueError(f"{len(classes)} classes for {model.output_channels} outputs")
        return cls(model, classes)

    def to_card(self) -> dict[str, Any]:
        """Return the model's configuration and its classes."""
        return {"model": self.model_config.to_dict(), "classes": list(self.classes)}

    def build_model(self, positions: torch.Tensor | None = None) -> DensePredictor:
        """Return a model with new weights."""
        return DensePredictor(self.model_config, positions=positions)

    def losses(self, outputs: torch.Tensor, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the mean cross-entropy of each sample's pixels that count, `[batch]`.

        Args:
            outputs: The logits, `[batch, height, width, classes]`.
            batch: The samples.
            training: Whether labels are smoothed.
        """
        targets = self._targets(batch)
        losses = F.cross_entropy(
            outputs.movedim(-1, 1),
            targets,
            ignore_index=NO_CLASS,
            reduction="none",
            label_smoothing=self.label_smoothing if training else 0.0,
        )
        counted = (targets != NO_CLASS).flatten(1).sum(dim=1)
        return losses.flatten(1).sum(dim=1) / counted.clamp(min=1)

    def loss_weights(self, batch: Batch) -> torch.Tensor:
        """Return the number of each sample's pixels that count, float32 `[batch]`."""
        return batch.weights * (self._targets(batch) != NO_CLASS).flatten(1).sum(dim=1)

    def sums(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the numbers of right pixels and of pixels that count, `[2]`."""
        targets = self._targets(batch)
        counted = (targets != NO_CLASS) & batch.good[:, None, None]
        right = (outputs.argmax(dim=-1) == targets) & counted
        return torch.stack([right.sum(), counted.sum()]).to(outputs.dtype)

    def metric_values(self, sums: Sequence[float], weight: float) -> tuple[float, ...]:
        """Return the share of the pixels that have the right class."""
        return (sums[0] / max(1.0, sums[1]),)

    def measures(self) -> "MetricCollection":
        """Return the mean over the classes of the intersection over union."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassJaccardIndex

        iou = MulticlassJaccardIndex(
            max(2, len(self.classes)), average="macro", ignore_index=NO_CLASS, validate_args=False
        )
        return MetricCollection({"mean_iou": iou})

    def measured(self, outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the predicted and true classes of the good samples, int64."""
        return outputs[batch.good].argmax(dim=-1), self._targets(batch)[batch.good]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.classes

    def class_answers(self, outputs: torch.Tensor, batch: Batch) -> ClassAnswers:
        """Return the classes of the pixels that count."""
        targets = self._targets(batch)
        return ClassAnswers.of(outputs, targets, (targets != NO_CLASS) & batch.good[:, None, None])

    def shown(self, outputs: torch.Tensor, batch: Batch) -> list[Shown]:
        """Return the true mask and the answer's, as PNG."""
        masks = batch.targets.cpu().numpy().astype(np.uint8)
        found = self.predictions(outputs, [""] * len(masks))
        return [
            Shown({"mask": _png(mask), "shares": self._shares(mask)}, answer_of(prediction))
            for mask, prediction in zip(masks, found, strict=True)
        ]

    def predictions(self, outputs: torch.Tensor, sources: Sequence[str]) -> list[Prediction]:
        """Return each image's mask as PNG, and the share of each class."""
        masks = outputs.argmax(dim=-1).cpu().numpy().astype(np.uint8)
        return [
            MaskPrediction(source, _png(mask), self._shares(mask), None)
            for source, mask in zip(sources, masks, strict=True)
        ]

    def sample_values(
        self, outputs: torch.Tensor, batch: Batch, classes: tuple[str, ...]
    ) -> np.ndarray:
        """Return the mean IoU of each sample, over the classes in its mask or its prediction.

        Classes are compared by name. A class that the set does not have is always wrong. A sample
        without any pixel that counts has the value 1.
        """
        number_of = {name: number for number, name in enumerate(classes)}
        known = np.array(
            [number_of.get(name, len(classes) + k) for k, name in enumerate(self.classes)]
        )
        predicted = known[outputs.argmax(dim=-1).cpu().numpy()]
        targets = batch.targets.cpu().numpy().astype(np.int64)
        ignored = [known[number] for number in self.ignored]
        targets[(targets == UNLABELLED) | np.isin(targets, ignored)] = NO_CLASS
        return np.array([_mean_iou(*pair) for pair in zip(predicted, targets, strict=True)])

    def _targets(self, batch: Batch) -> torch.Tensor:
        """Return the classes, int64 `[batch, height, width]`, with -1 for pixels not counted."""
        targets = batch.targets.long()
        uncounted = targets == UNLABELLED
        for number in self.ignored:
            uncounted |= targets == number
        return targets.masked_fill(uncounted, NO_CLASS)

    def _shares(self, mask: np.ndarray) -> dict[str, float]:
        counts = np.bincount(mask.ravel(), minlength=len(self.classes))[: len(self.classes)]
        return dict(zip(self.classes, (counts / mask.size).tolist(), strict=True))


def _png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


def _mean_iou(predicted: np.ndarray, target: np.ndarray) -> float:
    counted = target != NO_CLASS
    predicted, target = predicted[counted], target[counted]
    values = [
        ((predicted == number) & (target == number)).sum()
        / ((predicted == number) | (target == number)).sum()
        for number in np.union1d(predicted, target)
    ]
    return float(np.mean(values)) if values else 1.0
