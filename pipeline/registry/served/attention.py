"""Where the latents look in one sample: a picture, a curve over time, or a list of parts.

A view shows the last cross-attend that reads the input. Its weights are averaged over heads and
latents, so they sum to 1 over the tokens of a sample.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from perceiver_model.adapters.backbone_config import backbone_of
from perceiver_model.adapters.multimodal_config import MultimodalInput
from perceiver_model.attention_maps import cross_attention_maps
from pipeline.inputs.attention_view import View, no_view
from pipeline.inputs.modality import inputs_of
from pipeline.media import MediaFormat
from pipeline.training.objectives import Batch, Objective

CARRIED = "the latents are carried from part to part, so a part alone has no map"
"""Why there is no view of a model of streams."""


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
    stored: Mapping[str, torch.Tensor],
    samples: Batch,
) -> dict[str, View]:
    """Return where the latents look in a sample, by modality.

    Args:
        objective: What the model is trained for.
        model: The model.
        formats: The formats of its input, by modality.
        stored: The arrays of one sample by modality, as shards hold them. It may lack some.
        samples: The same sample, as the objective takes it.

    Returns:
        A view of each modality. Its `kind` is `none` if there is no view, and `reason` says why.
    """
    index = _last_attend(objective.model_config)
    try:
        (weights,) = cross_attention_maps(_Forward(objective, model), samples, index=index)
    except ValueError as error:
        return {name: no_view(str(error)) for name in formats}
    tokens = weights[0].mean(dim=(0, 1)).double().numpy()
    views, start = {}, 0
    for name, grid in _layout(objective, formats, samples, len(tokens)):
        size = math.prod(grid)
        own = tokens[start : start + size]
        start += size
        if name not in formats:  # a label that the model reads as a modality
            continue
        if len(own) != size:
            views[name] = no_view(f"the model attends to {len(tokens)} tokens, which fit no grid")
        elif name not in stored:
            views[name] = no_view("the sample lacks it")
        else:
            inputs, _ = objective.model_inputs(samples)
            read: Any = inputs[name] if isinstance(inputs, dict) else inputs
            fmt = formats[name]
            draw = inputs_of(fmt).attention_view
            views[name] = draw(own.reshape(grid), stored[name], read, fmt)
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
            (name, _grid(formats.get(name), part, given.get(name)))
            for name, part in config.input.modalities.items()
        ]
    (name,) = formats
    if not hasattr(config, "token_grid"):  # language models
        return [(name, (total,))]
    if backbone_of(config) is not None:  # each cross-attend has a grid of its own
        return [(name, config.token_grids[_last_attend(config) % len(config.token_grids)])]
    return [(name, _grid(formats[name], config, inputs))]


def _grid(fmt: MediaFormat | None, part: Any, inputs: Any) -> tuple[int, ...]:
    """Return the grid of a modality's tokens; that of a label, which has no format, is its own."""
    if fmt is None or inputs is None:
        grid: tuple[int, ...] = part.token_grid
        return grid
    return inputs_of(fmt).token_grid(part, inputs)
