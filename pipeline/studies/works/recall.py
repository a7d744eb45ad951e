"""Train a model to report what it saw some parts ago in a stream of images, and test its memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model import num_parameters
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.positions import load_positions
from pipeline.runs.console import Console
from pipeline.studies.image_data import image_format
from pipeline.studies.peers.recurrent import (
    GRU,
    CarriedLatents,
    Recall,
    SlotMemory,
    TruncatedContext,
)
from pipeline.studies.peers.table import nearest_in_size
from pipeline.studies.sets import split_images
from pipeline.training.objectives import objective_of
from pipeline.training.optimizer import make_optimizer
from pipeline.training.schedule import learning_rate
from shards import ShardSet

TESTED_ORDERS = 4
"""How many random orders the test images are streamed in."""


def train_recall(config: Config, options: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """Train a model of streams, and test what it recalls.

    A part of a stream is one image. After each part the model names the class of the image at each
    distance: 0 is the image that it has just read. An epoch takes every training image once, in
    streams drawn anew.

    Args:
        config: The configuration of images. `training.batch_size` is in images, of all streams of
            a step.
        options: `model`: `carried`, `cut`, `truncated`, `gru` or `slots`; `lags`, the distances;
            `parts`, those of a training stream; `tested_parts`, those of a test stream; `context`,
            the parts that `truncated` reads; and `slots`, their number.
        console: The console.

    Returns:
        `recall` by distance, the share of test parts whose class at that distance is named; and
        `parameters`.

    Raises:
        UserError: The streams of a step are longer than the batch, or a sample cannot be read.
    """
    shard_set = ShardSet.open(config.shards_folder, config.data.remote_reading)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    objective = objective_of(config, shard_set)

    def perceiver() -> Any:
        return objective.build_model(load_positions(shard_set, objective.model_config))

    classes = len(shard_set.manifest.classes)
    model = recall_model(config, options, perceiver, classes).to(device)
    images, targets = split_images(config, shard_set, "train", device)
    _train(config, options, model, images, targets)
    images, targets = split_images(config, shard_set, "test", device)
    recall = measure_recall(model, images, targets, options)
    console.notice(f"{options['model']}: {recall}")
    return {"recall": recall, "parameters": num_parameters(model)}


def recall_model(
    config: Config, options: Mapping[str, Any], perceiver: Callable[[], Any], num_classes: int
) -> Recall:
    """Return the model of an arm, with new weights.

    Args:
        config: The configuration of images.
        options: Those of `train_recall`.
        perceiver: Returns the classifier of the configuration, with new weights.
        num_classes: The number of classes.

    Raises:
        UserError: No peer comes within 5 % of the Perceiver's parameters.
    """
    lags = len(options["lags"])
    ours = CarriedLatents(perceiver(), lags, num_classes)
    if options["model"] in ("carried", "cut"):
        return ours
    if options["model"] == "truncated":
        return TruncatedContext(perceiver(), lags, num_classes, options["context"])
    image = image_format(config)
    grid, channels = (image.height, image.width), image.channels

    def gru(dim: int, hidden: int) -> nn.Module:
        return GRU(grid[0] * grid[1] * channels, lags, num_classes, dim, hidden)

    def slots(dim: int, hidden: int) -> nn.Module:
        return SlotMemory(grid, channels, lags, num_classes, dim, hidden, options["slots"])

    build = {"gru": gru, "slots": slots}[options["model"]]
    found = nearest_in_size(
        options["model"], range(16, 769, 4), lambda dim: dim, build, num_parameters(ours)
    )
    assert isinstance(found, Recall)
    return found


def _train(
    config: Config,
    options: Mapping[str, Any],
    model: Recall,
    images: torch.Tensor,
    targets: torch.Tensor,
) -> None:
    training = config.training
    steps = len(images) // training.batch_size
    if not steps or training.batch_size < options["parts"]:
        raise UserError(
            f"training.batch_size {training.batch_size}: {len(images)} images are too few for it, "
            f"or it holds no stream of {options['parts']} parts"
        )
    optimizer = make_optimizer(model, training)
    generator = torch.Generator().manual_seed(config.seed)
    model.train()
    for step in range(steps * training.epochs):
        epoch, number = divmod(step, steps)
        if number == 0:
            order = torch.randperm(len(images), generator=generator).to(images.device)
            parts = parts_in(epoch, training.epochs, options["parts"])
            num_streams = training.batch_size // parts
        first = number * training.batch_size
        chosen = order[first : first + num_streams * parts].view(num_streams, parts)
        loss = recall_loss(model, images[chosen], targets[chosen], options)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, training)
        if training.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def parts_in(epoch: int, epochs: int, most: int) -> int:
    """Return how many parts the streams of an epoch have.

    They grow evenly, from one in the first epoch to all of them in the second half. A model that
    cannot yet name what it sees learns nothing from what it saw before.
    """
    return min(most, 1 + 2 * epoch * (most - 1) // epochs)


def recall_loss(
    model: Recall, images: torch.Tensor, targets: torch.Tensor, options: Mapping[str, Any]
) -> torch.Tensor:
    """Return the mean cross entropy over parts and distances of streams `[streams, parts, …]`."""
    losses, state = [], None
    for part in range(images.shape[1]):
        logits, state = model(images[:, part], state)
        if options["model"] == "cut":
            state = model.detached(state)
        losses += [
            F.cross_entropy(logits[:, index].float(), targets[:, part - lag])
            for index, lag in enumerate(options["lags"])
            if lag <= part
        ]
    return torch.stack(losses).mean()


@torch.inference_mode()
def measure_recall(
    model: Recall, images: torch.Tensor, targets: torch.Tensor, options: Mapping[str, Any]
) -> dict[int, float]:
    """Return the share of parts whose class at each distance is named, in longer streams."""
    model.eval()
    parts = min(options["tested_parts"], len(images))
    generator = torch.Generator().manual_seed(0)
    right, total = dict.fromkeys(options["lags"], 0), dict.fromkeys(options["lags"], 0)
    for _ in range(TESTED_ORDERS):
        order = torch.randperm(len(images), generator=generator)
        chosen = order[: len(images) // parts * parts].view(-1, parts).to(images.device)
        state = None
        for part in range(parts):
            logits, state = model(images[chosen[:, part]], state)
            for index, lag in enumerate(options["lags"]):
                if lag <= part:
                    named = logits[:, index].argmax(dim=1)
                    right[lag] += int((named == targets[chosen[:, part - lag]]).sum())
                    total[lag] += len(named)
    return {lag: right[lag] / total[lag] for lag in options["lags"] if total[lag]}
