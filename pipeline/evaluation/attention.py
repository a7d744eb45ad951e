"""Where the latents look in one sample: a picture, a curve over time, or a list of parts.

A view shows the last cross-attend that reads the input. Its weights are averaged over heads and
latents, so they sum to 1 over the tokens of a sample.
"""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from perceiver_model.adapters.multimodal_config import MultimodalInput
from perceiver_model.attention_maps import cross_attention_maps, overlay
from pipeline.media import MediaFormat
from pipeline.training.objectives import Batch, Objective
from shards.loader import ShardBatch

MAX_PARTS = 10
MAX_POINTS_OF_CURVE = 200

View = dict[str, Any]
"""`kind` is `picture` (with `png`), `curve`, `parts` or `none`, and the other fields follow it."""


class _Forward(nn.Module):
    """A model that takes a batch, as an objective calls it."""

    def __init__(self, objective: Objective, model: nn.Module) -> None:
        super().__init__()
        self._objective, self.model = objective, model

    def forward(self, samples: Batch) -> Any:
        return self._objective.outputs(self.model, samples, training=False)


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
    index = _last_attend(objective.model_config)
    try:
        (weights,) = cross_attention_maps(_Forward(objective, model), samples, index=index)
    except ValueError as error:
        return {name: _none(str(error)) for name in formats}
    tokens = weights[0].mean(dim=(0, 1)).double().numpy()
    views, start = {}, 0
    for name, grid in _layout(objective, formats, samples, len(tokens)):
        size = math.prod(grid)
        own = tokens[start : start + size]
        start += size
        if name not in formats:  # a label that the model reads as a modality
            continue
        if len(own) != size:
            views[name] = _none(f"the model attends to {len(tokens)} tokens, which fit no grid")
        elif not _is_there(name, batch):
            views[name] = _none("the sample lacks it")
        else:
            draw = _VIEWS.get(name, _no_view)
            views[name] = draw(own.reshape(grid), batch, samples, formats[name], objective)
            views[name]["share"] = float(own.sum())
    return views


def _last_attend(config: Any) -> int:
    encoder = getattr(config, "encoder", None)
    return encoder.num_cross_attends - 1 if encoder is not None else 0


def _layout(
    objective: Objective, formats: Mapping[str, MediaFormat], samples: Batch, total: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Return the modalities in the order of their tokens, and their grids of tokens."""
    config: Any = objective.model_config
    inputs, _ = objective.model_inputs(samples)
    if isinstance(getattr(config, "input", None), MultimodalInput):
        given = inputs if isinstance(inputs, dict) else {}
        return [
            (name, _grid(name, part, given.get(name)))
            for name, part in config.input.modalities.items()
        ]
    (name,) = formats
    if not hasattr(config, "token_grid"):  # language models
        return [(name, (total,))]
    return [(name, _grid(name, config, inputs))]


def _grid(name: str, part: Any, inputs: Any) -> tuple[int, ...]:
    if name == "text" and isinstance(inputs, torch.Tensor):
        return (inputs.shape[1],)  # texts have as many tokens as the longest of their batch
    grid: tuple[int, ...] = part.token_grid
    return grid


def _is_there(name: str, batch: ShardBatch) -> bool:
    lengths = batch.lengths.get(name)
    return lengths is None or bool(lengths[0] > 0)


def _picture(
    weights: np.ndarray, batch: ShardBatch, samples: Batch, fmt: Any, objective: Objective
) -> View:
    return {"kind": "picture", "png": _png(_overlaid(batch.fields["image"][0].numpy(), weights))}


def _film(
    weights: np.ndarray, batch: ShardBatch, samples: Batch, fmt: Any, objective: Objective
) -> View:
    """Return the most attended frame, and the weights over time."""
    frames = batch.fields["video"][0].numpy()
    over_time = weights.reshape(len(weights), -1).sum(axis=1)
    step = int(over_time.argmax())
    frame = frames[min(len(frames) - 1, step * len(frames) // len(over_time))]
    return {
        "kind": "curve",
        "axis": "frames",
        "to": len(frames),
        "weights": _shortened(over_time),
        "png": _png(_overlaid(frame, weights[step].reshape(weights.shape[1:3]))),
    }


def _sound(
    weights: np.ndarray, batch: ShardBatch, samples: Batch, fmt: Any, objective: Objective
) -> View:
    over_time = weights.reshape(len(weights), -1).sum(axis=1)
    seconds = float(fmt.num_samples / fmt.sample_rate)
    return {"kind": "curve", "axis": "seconds", "to": seconds, "weights": _shortened(over_time)}


def _text(
    weights: np.ndarray, batch: ShardBatch, samples: Batch, fmt: Any, objective: Objective
) -> View:
    """Return the most attended words."""
    from perceiver_model.adapters.text import decode_bytes

    inputs, _ = objective.model_inputs(samples)
    ids: Any = inputs["text"] if isinstance(inputs, dict) else inputs
    words: dict[int, list[Any]] = {}
    word = 0
    for token, weight in zip(ids[0].tolist(), weights.tolist(), strict=False):
        if chr(max(0, token - 6)).isspace() and token >= 6:
            word += 1
        elif weight > 0:
            part = words.setdefault(word, [[], 0.0])
            part[0].append(token)
            part[1] += weight
    return _parts([(_shown(decode_bytes(tokens)), w) for tokens, w in words.values()])


def _columns(
    weights: np.ndarray, batch: ShardBatch, samples: Batch, fmt: Any, objective: Objective
) -> View:
    names = list(fmt.columns)
    if len(names) != weights.size:
        return _none(f"{weights.size} tokens are not one for each of {len(names)} columns")
    return _parts(list(zip(names, weights.ravel().tolist(), strict=True)))


def _points(
    weights: np.ndarray, batch: ShardBatch, samples: Batch, fmt: Any, objective: Objective
) -> View:
    points = batch.fields["points"][0, :, :3].float().tolist()
    pairs = zip(points, weights.ravel().tolist(), strict=False)
    named = [
        (f"point {number} ({', '.join(f'{value:.3g}' for value in point)})", weight)
        for number, (point, weight) in enumerate(pairs)
    ]
    return _parts(named)


def _no_view(
    weights: np.ndarray, batch: ShardBatch, samples: Batch, fmt: Any, objective: Objective
) -> View:
    return _none(f"there is no view of attention for the modality {fmt.modality!r}")


_VIEWS: dict[str, Callable[..., View]] = {
    "image": _picture,
    "audio": _sound,
    "video": _film,
    "points": _points,
    "text": _text,
    "table": _columns,
}
"""How each modality is shown. A modality without a line has no view, and the report says so."""


def _none(reason: str) -> View:
    return {"kind": "none", "reason": reason}


def _parts(weighted: list[tuple[str, float]]) -> View:
    """Return the parts with the largest weights."""
    chosen = sorted(weighted, key=lambda pair: pair[1], reverse=True)[:MAX_PARTS]
    return {"kind": "parts", "parts": [{"part": part, "weight": w} for part, w in chosen]}


def _shown(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def _shortened(weights: np.ndarray) -> list[float]:
    """Return sums over neighbours, at most `MAX_POINTS_OF_CURVE`."""
    parts = np.array_split(weights, min(len(weights), MAX_POINTS_OF_CURVE))
    return [float(part.sum()) for part in parts]


def _overlaid(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Draw weights `[rows, columns]` over an image, uint8 `[height, width, channels]`."""
    if image.shape[-1] not in (1, 3):
        image = np.zeros((*image.shape[:2], 1), np.uint8)
    return overlay(image, weights)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
