"""Where the latents look in one sample of a shard set."""

from collections.abc import Mapping

from torch import nn

from pipeline.inputs.attention_view import View
from pipeline.media import MediaFormat
from pipeline.registry.served import attention
from pipeline.training.objectives import Batch, Objective
from shards.loader import ShardBatch


def attention_views(
    objective: Objective,
    model: nn.Module,
    formats: Mapping[str, MediaFormat],
    batch: ShardBatch,
    samples: Batch,
) -> dict[str, View]:
    """Return where the latents look in a sample, by modality.

    Args:
        objective: What the model is trained for.
        model: The model.
        formats: The formats of its input, by modality.
        batch: One sample, as the shards hold it.
        samples: The same sample, as the objective takes it.

    Returns:
        A view of each modality. Its `kind` is `none` if there is no view, and `reason` says why.
    """
    lengths = {name: batch.lengths.get(name) for name in formats}
    stored = {
        name: batch.fields[name][0]
        for name, length in lengths.items()
        if length is None or bool(length[0] > 0)
    }
    return attention.attention_views(objective, model, formats, stored, samples)
