"""Train a Perceiver of images, and see what its attention maps and its later cross-attends read."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from perceiver_model.attention_maps import cross_attention_maps, map_divergence, on_grid, overlay
from pipeline.config.tree import Config
from pipeline.inputs.batches import inputs_on
from pipeline.inputs.positions import load_positions
from pipeline.runs.console import Console
from pipeline.studies.sets import split_images, split_loader
from pipeline.studies.trainings import test_accuracy, trained_perceiver
from pipeline.training.objectives import objective_of
from shards import ShardSet

COMPARED, SHOWN, ENLARGED = 16, 3, 6
"""The test images whose maps are compared, those of the picture, and the side of its pixels."""
POSITIONS, MEAN, OTHER = "positions only", "the mean image", "another image"
FIRST = "the first sees positions only"
UNTRAINED, SHUFFLED, SAME = "before training", "an image and its shuffled pixels", "of one class"

Change = Callable[[torch.Tensor], torch.Tensor]
"""What returns other contents of tokens `[batch, tokens, channels]`."""


def train_and_look(config: Config, options: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """Train the configuration's Perceiver; compare its maps, and hide the image from attends.

    Args:
        config: The configuration of images, with several cross-attends.
        options: `label`, which the labels of further results begin with.
        console: The console.

    Returns:
        The numbers of `train_perceiver`; `divergence` by cross-attend, counted from 1: the mean
        Jensen-Shannon divergence of the maps of two test images, in bits; `pictures`; and `also`,
        by label: the `accuracy` when later cross-attends see something else than the image, and
        the `divergence` of the untrained model, of images of one class, and of an image and the
        same with its pixels shuffled.
    """
    label = options["label"]
    # Every training begins with these weights.
    torch.manual_seed(config.seed)
    untrained = _new_model(config)
    numbers, shard_set, model = trained_perceiver(config, console)
    accuracy = test_accuracy(config, shard_set, model, model)
    device = next(model.parameters()).device
    images, targets = _test_images(config, shard_set, device)
    mean = _mean_content(config, shard_set, model)
    also: dict[str, Any] = {
        f"{label}, later see {what}": {
            "accuracy": test_accuracy(config, shard_set, _reading(model, later=change), model)
        }
        for what, change in {
            POSITIONS: torch.zeros_like,
            MEAN: lambda content: mean.expand_as(content),
            OTHER: lambda content: content.roll(1, dims=0),
        }.items()
    }
    first = _reading(model, first=torch.zeros_like)
    also[f"{label}, {FIRST}"] = {"accuracy": test_accuracy(config, shard_set, first, model)}
    maps = cross_attention_maps(model, images[:COMPARED])
    curves = {
        UNTRAINED: _divergences(cross_attention_maps(untrained.to(device), images[:COMPARED])),
        SAME: _within_classes(model, images, targets),
        SHUFFLED: _against_shuffled(model, images[:COMPARED]),
    }
    also |= {f"{label}, {what}": {"divergence": curve} for what, curve in curves.items()}
    return {
        **numbers,
        "accuracy": accuracy,
        "divergence": _divergences(maps),
        "also": also,
        "pictures": [_picture(config, label, images, maps)],
    }


def _new_model(config: Config) -> nn.Module:
    shard_set = ShardSet.open(config.shards_folder, config.data.remote_reading)
    objective = objective_of(config, shard_set)
    model: nn.Module = objective.build_model(load_positions(shard_set, objective.model_config))
    return model


def _test_images(
    config: Config, shard_set: ShardSet, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return test images in a fixed random order, and their classes."""
    images, targets = split_images(config, shard_set, "test", device)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    return images[order.to(device)], targets.cpu()[order]


@torch.inference_mode()
def _mean_content(config: Config, shard_set: ShardSet, model: Any) -> torch.Tensor:
    """Return the mean content of the tokens of training images, `[1, tokens, channels]`."""
    device = next(model.parameters()).device
    total, count = torch.zeros(()), 0
    for batch in split_loader(config, shard_set, "train"):
        inputs, mask = inputs_on(batch, config.data.formats, device)
        there = batch.weights > 0
        content = model.input_array(inputs, mask).content[there.to(device)]
        total = total.to(device) + content.sum(dim=0, keepdim=True)
        count += int(there.sum())
    return total / count


def _reading(
    model: Any, *, first: Change | None = None, later: Change | None = None
) -> Callable[[Any, Any], torch.Tensor]:
    """Return what gives logits when the first cross-attend, or all later ones, read other contents.

    Positions are not changed.
    """

    def logits(inputs: Any, mask: Any) -> torch.Tensor:
        array = model.input_array(inputs, mask)

        def changed(change: Change | None) -> Any:
            return array if change is None else array._replace(content=change(array.content))

        rest = model.config.encoder.num_cross_attends - 1
        latents = model.encoder((changed(first), *[changed(later)] * rest))
        found: torch.Tensor = model.head(latents).float()
        return found

    return logits


def _divergences(maps: list[torch.Tensor]) -> dict[int, float]:
    return {number: map_divergence(each) for number, each in enumerate(maps, start=1)}


def _mean_curve(curves: list[dict[int, float]]) -> dict[int, float]:
    return {at: float(np.mean([curve[at] for curve in curves])) for at in curves[0]}


def _within_classes(
    model: nn.Module, images: torch.Tensor, targets: torch.Tensor, each: int = 4
) -> dict[int, float]:
    """Return the divergence between images of one class, the mean over classes."""
    chosen = [images[(targets == number).to(images.device)][:each] for number in targets.unique()]
    found = [_divergences(cross_attention_maps(model, part)) for part in chosen if len(part) > 1]
    return _mean_curve(found)


def _against_shuffled(model: nn.Module, images: torch.Tensor) -> dict[int, float]:
    """Return the divergence between an image and the same with its pixels in random order."""
    generator = torch.Generator().manual_seed(0)
    curves = []
    for image in images:
        order = torch.randperm(image.shape[0] * image.shape[1], generator=generator)
        moved = image.flatten(0, 1)[order.to(image.device)].view_as(image)
        curves.append(_divergences(cross_attention_maps(model, torch.stack([image, moved]))))
    return _mean_curve(curves)


def _picture(
    config: Config, label: str, images: torch.Tensor, maps: list[torch.Tensor]
) -> dict[str, str]:
    """Draw images and, beside each, the maps of two latents by cross-attend.

    The latents are those whose maps change most and least between images in the last cross-attend.
    """
    from PIL import Image

    shown = images[:SHOWN].cpu()
    last = maps[-1]
    changes = [map_divergence(last[:, :, [index]]) for index in range(last.shape[2])]
    latents = [int(np.argmax(changes)), int(np.argmin(changes))]
    rows = []
    for number, image in enumerate(shown):
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        large = pixels.repeat_interleave(ENLARGED, 0).repeat_interleave(ENLARGED, 1).numpy()
        plain = overlay(large, np.zeros((1, 1)), opacity=0.0)
        row = [plain]
        for latent in latents:
            for each in maps:
                grid = on_grid(each[number, :, latent].mean(dim=0), tuple(image.shape[:2]))
                row.append(overlay(large, grid))
        rows.append(np.concatenate([_framed(tile) for tile in row], axis=1))
    path = config.folder / "maps.png"
    Image.fromarray(np.concatenate(rows)).save(str(path))
    caption = (
        f"Maps of {label}, first seed. Each row is a test image, then the maps of one latent by "
        f"cross-attend, then those of another: the latents, of {last.shape[2]}, whose maps change "
        "most and least between images in the last cross-attend. Each is the mean over heads."
    )
    return {"file": str(path), "name": "maps", "caption": caption}


def _framed(tile: np.ndarray) -> np.ndarray:
    return np.pad(tile, ((1, 1), (1, 1), (0, 0)), constant_values=255)
