"""What a model makes of every sample of a split: right or wrong, finite or not."""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.inputs.batches import inputs_on
from pipeline.registry.reading import Reading
from pipeline.registry.served.inference import Predictor
from shards import ShardSet


@dataclass(frozen=True)
class Outcomes:
    """A model on a split, sample by sample in the order of the shards.

    Attributes:
        readable: bool `[samples]`; a sample that cannot be read counts as wrong.
        finite: bool `[samples]`; whether all of the model's outputs are finite numbers. Others
            count as wrong.
        correct: bool `[samples]`.
    """

    readable: np.ndarray
    finite: np.ndarray
    correct: np.ndarray


@torch.inference_mode()
def outcomes(predictor: Predictor, shard_set: ShardSet, split: str, reading: Reading) -> Outcomes:
    """Run a model on every sample of a split.

    Classes are compared by name: a class of the set that the model does not know is always wrong.

    Args:
        predictor: the model.
        shard_set: not necessarily the one that the model was trained on.
        split: one of its splits.
        reading: how the model reads the set.

    Raises:
        ShardError: the set has no such split.
    """
    num_samples = shard_set.num_samples(split)
    readable, correct = np.zeros(num_samples, bool), np.zeros(num_samples, bool)
    finite = np.ones(num_samples, bool)
    number_of = {name: number for number, name in enumerate(shard_set.manifest.classes)}
    classes = np.array([number_of.get(name, -1) for name in predictor.card.classes])
    formats = {reading.media.modality: reading.media}
    for batch in reading.batches(shard_set, split):
        good = batch.weights.numpy() > 0
        numbers, targets = batch.numbers.numpy()[good], batch.targets.numpy()[good]
        logits = predictor.model(*inputs_on(batch, formats, predictor.device))
        logits = logits.float().cpu().numpy()[good]
        answers = classes[np.nan_to_num(logits).argmax(axis=1)]
        readable[numbers] = True
        finite[numbers] = np.isfinite(logits).all(axis=1)
        correct[numbers] = (answers == targets) & (targets >= 0) & finite[numbers]
    return Outcomes(readable, finite, correct)


def weights_not_finite(weights: dict[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that hold a value that is not a finite number, sorted."""
    return sorted(name for name, tensor in weights.items() if not torch.isfinite(tensor).all())
