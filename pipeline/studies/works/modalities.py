"""Train a model of several modalities, and test it as they are, and with some dropped or wrong."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.studies.trainings import test_accuracy, trained_perceiver

Condition = Callable[[Any, Any, Any], torch.Tensor]
"""What returns logits of a model, inputs and masks."""


def train_modalities(
    config: Config, options: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Train the configuration's Perceiver, and test it under several conditions.

    Args:
        config: The configuration.
        options: `conditions`, the condition by the label of its result: `without NAME` of a
            modality, `others' NAME` (that of another sample of the batch), or `labels swapped`
            (the learned vectors that say what a token's modality is).
        console: The console.

    Returns:
        The same as `train_perceiver`, and `also`: the `accuracy` of each condition, by label.
    """
    trained, shard_set, model = trained_perceiver(config, console)
    also = {
        label: {"accuracy": test_accuracy(config, shard_set, _under(condition, model), model)}
        for label, condition in options["conditions"].items()
    }
    whole = test_accuracy(config, shard_set, model, model)
    return {**trained, "accuracy": whole, "also": also}


def _under(condition: str, model: Any) -> Callable[[Any, Any], torch.Tensor]:
    """Return what returns logits under a condition."""
    if condition == "labels swapped":
        return lambda inputs, masks: _with_swapped_labels(model, inputs, masks)
    kind, _, name = condition.partition(" ")
    change = {"without": _without, "others'": _of_others}[kind]

    def logits(inputs: Any, masks: Any) -> torch.Tensor:
        found: torch.Tensor = model(*change(name, dict(inputs), dict(masks)))
        return found

    return logits


def _without(name: str, inputs: dict[str, Any], masks: dict[str, Any]) -> tuple[Any, Any]:
    masks.pop(name, None)
    return {**inputs, name: None}, masks


def _of_others(name: str, inputs: dict[str, Any], masks: dict[str, Any]) -> tuple[Any, Any]:
    """Give each sample the modality of the next one in a fixed random order of the batch."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(inputs[name]), generator=generator)
    source = torch.empty_like(order)
    source[order] = order.roll(1)  # one circle: no sample keeps its own
    inputs[name] = inputs[name][source.to(inputs[name].device)]
    if name in masks:
        masks[name] = masks[name][source.to(masks[name].device)]
    return inputs, masks


@torch.no_grad()
def _with_swapped_labels(model: Any, inputs: Any, masks: Any) -> torch.Tensor:
    """Return logits of a model whose modalities have each other's learned channels at the end."""
    vectors = model.adapter.padding.vectors
    names = list(vectors)
    channels = min(vector.shape[1] for vector in vectors.values())
    kept = {name: vectors[name].detach().clone() for name in names}
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        vectors[name][:, -channels:] = kept[other][:, -channels:]
    try:
        found: torch.Tensor = model(inputs, masks)
    finally:
        for name in names:
            vectors[name].copy_(kept[name])
    return found
