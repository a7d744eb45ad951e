"""One sample for people: what it is, what the model answers, and where the model looks."""

import base64
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.evaluation.attention import attention_views
from pipeline.evaluation.worst import ShownSample
from pipeline.inputs.attention_view import no_view
from pipeline.inputs.batches import inputs_on
from pipeline.media import MediaFormat
from pipeline.registry.served.attention import CARRIED
from pipeline.training.objectives import Objective
from pipeline.training.samples import batch_of
from shards import ShardReader


def described(
    objective: Objective,
    formats: Mapping[str, MediaFormat],
    module: torch.nn.Module,
    device: torch.device,
    reader: ShardReader,
    is_stream: bool,
    sample: ShownSample,
) -> dict[str, Any]:
    """Return one sample: what it is, what the model answers, and where it looks.

    Args:
        objective: What the model is trained for.
        formats: The formats of the model's input, by modality.
        module: The model, in evaluation mode.
        device: The model's device.
        reader: The reader of the sample's split.
        is_stream: Whether the model reads recordings as streams.
        sample: The sample.

    Returns:
        `source`, `number`, `loss`, `target`, `answer` and `attention` (views by modality). Pictures
        and sounds are bytes.
    """
    batch = sample.batch
    if is_stream:
        views: Any = {name: no_view(CARRIED) for name in formats}
    else:
        inputs, mask = inputs_on(batch, formats, device)
        samples = batch_of(batch, inputs, mask, objective.target, device)
        views = attention_views(objective, module, formats, batch, samples)
    number = int(batch.numbers[0])
    return {
        "source": reader.read(number).source_uri,
        "number": number,
        "loss": sample.loss,
        "target": sample.target,
        "answer": sample.answer,
        "attention": views,
    }


def as_json(value: Any) -> Any:
    """Return the same with `{"media_type": …, "base64": …}` in place of bytes."""
    if isinstance(value, bytes):
        kind = "audio/wav" if value.startswith(b"RIFF") else "image/png"
        return {"media_type": kind, "base64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    return value
