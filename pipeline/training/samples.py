"""The batches of a shard set as an objective takes them."""

import torch

from pipeline.inputs.batches import target_of
from pipeline.inputs.collate import BatchInputs, BatchMask
from pipeline.training.objectives import Batch
from shards.loader import ShardBatch


def batch_of(
    batch: ShardBatch,
    inputs: BatchInputs,
    mask: BatchMask,
    target: str,
    device: torch.device,
    seed: int = 0,
) -> Batch:
    """Return a batch of a shard set as an objective takes it.

    Args:
        batch: The batch, from `media_loader` or another loader of the same fields.
        inputs: Its inputs, from `inputs_on`.
        mask: Their mask, from `inputs_on`.
        target: The kind of the targets.
        device: The device of the inputs.
        seed: The seed of this step of a training; 0 in evaluations.
    """
    targets, lengths = target_of(batch, target, device)
    weights = batch.weights.to(device, non_blocking=True)
    return Batch(inputs, mask, targets, lengths, weights, batch.numbers, seed)
