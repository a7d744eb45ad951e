"""A model's outcome on every sample of a split: its answer's value, and whether it is finite."""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.media.image.masks import UNLABELLED
from pipeline.registry.reading import Reading
from pipeline.registry.served.inference import Predictor
from pipeline.training.evaluation import answered
from shards import ShardSet


@dataclass(frozen=True)
class Outcomes:
    """A model's outcomes on a split, in the order of the shards.

    Attributes:
        readable: Whether each sample can be read, bool `[samples]`.
        finite: Whether all of the model's outputs for a sample are finite numbers, bool
            `[samples]`.
        values: The values of the selection metric, float64 `[samples]`, such as 1 where a
            classifier is right and 0 where it is wrong. Samples that cannot be read, or have
            outputs that are not finite, get the objective's worst value.
        rows: The numbers of samples that have a class, int64 `[pairs]`; None if the targets have no
            classes. A sample with several labels, or a mask of several classes, occurs repeatedly.
        classes: The numbers of these classes in the set, int64 `[pairs]`.
    """

    readable: np.ndarray
    finite: np.ndarray
    values: np.ndarray
    rows: np.ndarray | None = None
    classes: np.ndarray | None = None


@torch.inference_mode()
def outcomes(predictor: Predictor, shard_set: ShardSet, split: str, reading: Reading) -> Outcomes:
    """Run a model on every sample of a split.

    Args:
        predictor: The model.
        shard_set: The shard set. The model may have been trained on another one.
        split: A split of the set.
        reading: How the model reads the set.

    Raises:
        ShardError: The set has no such split.
    """
    objective, num_samples = predictor.card.objective, shard_set.num_samples(split)
    readable, finite = np.zeros(num_samples, bool), np.ones(num_samples, bool)
    values = np.full(num_samples, objective.worst)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    loader = reading.loader(shard_set, split, is_stream=predictor.card.is_stream)
    for batch, samples, outputs in answered(
        predictor.model, objective, loader, reading.formats, predictor.device, loader.recordings
    ):
        good = batch.weights.numpy() > 0
        numbers = batch.numbers.numpy()[good]
        found = objective.sample_values(outputs, samples, shard_set.manifest.classes)
        is_finite = objective.finite(outputs)
        readable[numbers], finite[numbers] = True, is_finite[good]
        values[numbers] = np.where(is_finite, found, objective.worst)[good]
        if (has := _classes_of(objective.target, samples.targets.cpu().numpy()[good])) is not None:
            pairs.append((numbers[has[0]], has[1]))
    if not pairs:
        return Outcomes(readable, finite, values)
    rows, classes = (np.concatenate(each) for each in zip(*pairs, strict=True))
    return Outcomes(readable, finite, values, rows, classes)


def _classes_of(kind: str, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the rows and the class numbers of the targets of a kind, or None without classes."""
    if kind == "class":
        (rows,) = np.nonzero(targets >= 0)
        return rows, targets[rows]
    if kind == "multi_label":
        rows, classes = np.nonzero(targets)
        return rows, classes
    if kind == "mask":
        found = [np.unique(mask[mask != UNLABELLED]) for mask in targets]
        rows = np.repeat(np.arange(len(found)), [len(each) for each in found])
        return rows, np.concatenate([np.empty(0, np.int64), *found]).astype(np.int64)
    return None


def weights_not_finite(weights: dict[str, torch.Tensor]) -> list[str]:
    """Return the sorted names of the tensors that hold a value that is not finite."""
    return sorted(name for name, tensor in weights.items() if not torch.isfinite(tensor).all())
