"""Example predictions: some samples of a split, spread evenly over it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from perceiver_model.attention.multi_head import set_attention_path
from pipeline.evaluation.described import described
from pipeline.evaluation.worst import ShownSample, row_of
from pipeline.inputs.batches import has_array
from pipeline.inputs.modality import inputs_of
from pipeline.media import MediaFormat
from pipeline.registry.reading import Reading
from pipeline.registry.served.card import ModelCard
from pipeline.training.evaluation import answered
from pipeline.training.streams import rows_of
from shards import ShardReader, ShardSet
from shards.loader import ShardBatch
from shards.loader_batches import BatchMaker

_CPU = torch.device("cpu")
_MOST_BATCHES = 1000
"""The longest recording that is read for an example, in parts."""


@torch.no_grad()
def examples_of(
    card: ModelCard, shard_set: ShardSet, split: str, module: torch.nn.Module, count: int
) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Return example predictions of a model on the CPU.

    Args:
        card: The model's card.
        shard_set: The set that it was trained on.
        split: A split of the set.
        module: The model with its weights, on the CPU.
        count: The largest number of examples. Samples that cannot be read are left out.

    Returns:
        Each sample from `described`, and the pictures of its input by modality. If the model reads
        streams, the samples are the last parts of the first recordings.
    """
    objective = card.objective
    reading = Reading(card.media, card.media, has_target=has_array(objective.target))
    module.eval()
    set_attention_path(module, "auto")
    if card.is_stream:
        loader = reading.loader(shard_set, split, is_stream=True, batch_size=count)
        batches, recordings = iter(loader), loader.recordings
    else:
        batches, recordings = iter([_spread(reading, shard_set, split, count)]), None
    found: list[ShownSample] = []
    steps = answered(module, objective, batches, card.formats, _CPU, recordings)
    for _, (batch, samples, outputs) in zip(range(_MOST_BATCHES), steps, strict=False):
        chosen = batch.weights > 0
        if recordings is not None:
            chosen &= rows_of(recordings.are_last(batch.numbers.numpy()), _CPU)
        if chosen.any():
            losses = objective.losses(outputs, samples, training=False).double().tolist()
            shown = objective.shown(outputs, samples)
            for row in chosen.nonzero().flatten().tolist():
                target, answer = shown[row]
                found.append(
                    ShownSample((0.0, row), losses[row], target, answer, row_of(batch, row))
                )
        if len(found) >= count:
            break
    reader = ShardReader(shard_set, split, verify_samples=False)
    return [
        (
            described(objective, card.formats, module, _CPU, reader, card.is_stream, sample),
            _inputs(card.formats, sample.batch),
        )
        for sample in found[:count]
    ]


def _spread(reading: Reading, shard_set: ShardSet, split: str, count: int) -> ShardBatch:
    """Return a batch of samples that are spread evenly over a split."""
    total = shard_set.num_samples(split)
    numbers = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
    lengths = reading.padded_lengths
    maker = BatchMaker(ShardReader(shard_set, split), reading, lengths, True, True)
    return maker.make(numbers, 0)


def _inputs(formats: Mapping[str, MediaFormat], batch: ShardBatch) -> dict[str, np.ndarray]:
    """Return the pictures of a sample's input, by modality."""

    def drawn() -> Iterator[tuple[str, np.ndarray | None]]:
        for name, fmt in formats.items():
            stored, length = batch.fields[name][0], batch.lengths.get(name)
            whole = stored if length is None else stored[: int(length[0])]
            if len(whole):
                yield name, inputs_of(fmt).input_picture(whole, fmt)

    return {name: pixels for name, pixels in drawn() if pixels is not None}
