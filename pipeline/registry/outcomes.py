"""What a model makes of every sample of a split: how good its answer is, and whether finite."""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.inputs.batches import inputs_on, target_of
from pipeline.registry.reading import Reading
from pipeline.registry.served.inference import Predictor
from pipeline.training.objectives import Batch
from shards import ShardSet


@dataclass(frozen=True)
class Outcomes:
    """A model on a split, sample by sample in the order of the shards.

    Attributes:
        readable: bool `[samples]`.
        finite: bool `[samples]`; whether all of the model's outputs are finite numbers.
        values: float64 `[samples]`; of the objective's selection, such as 1 where a classifier is
            right and 0 where it is wrong. Samples that cannot be read, and those for which outputs
            are not finite, have the objective's worst.
    """

    readable: np.ndarray
    finite: np.ndarray
    values: np.ndarray


@torch.inference_mode()
def outcomes(predictor: Predictor, shard_set: ShardSet, split: str, reading: Reading) -> Outcomes:
    """Run a model on every sample of a split.

    Args:
        predictor: the model.
        shard_set: not necessarily the one that the model was trained on.
        split: one of its splits.
        reading: how the model reads the set.

    Raises:
        ShardError: the set has no such split.
    """
    objective, num_samples = predictor.card.objective, shard_set.num_samples(split)
    readable, finite = np.zeros(num_samples, bool), np.ones(num_samples, bool)
    values = np.full(num_samples, objective.worst)
    formats = {reading.media.modality: reading.media}
    for batch in reading.batches(shard_set, split):
        good = batch.weights.numpy() > 0
        numbers = batch.numbers.numpy()[good]
        samples = Batch(
            *inputs_on(batch, formats, predictor.device),
            *target_of(batch, objective.target, predictor.device),
            batch.weights.to(predictor.device),
        )
        outputs = objective.outputs(predictor.model, samples, training=False)
        found = objective.sample_values(
            outputs, samples.targets.cpu().numpy(), shard_set.manifest.classes
        )
        is_finite = objective.finite(outputs)
        readable[numbers], finite[numbers] = True, is_finite[good]
        values[numbers] = np.where(is_finite, found, objective.worst)[good]
    return Outcomes(readable, finite, values)


def weights_not_finite(weights: dict[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that hold a value that is not a finite number, sorted."""
    return sorted(name for name, tensor in weights.items() if not torch.isfinite(tensor).all())
