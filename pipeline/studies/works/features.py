"""Train a Perceiver that reads feature maps, or fit a linear layer to the last one."""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from perceiver_model.adapters.backbone_config import BackboneConfig
from perceiver_model.adapters.backbone_module import build_module
from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.studies.image_data import image_format
from pipeline.studies.sets import split_images
from pipeline.studies.trainings import test_accuracy, trained_perceiver
from pipeline.studies.works.backbones import LATE, calibrate, pretrain
from shards import ShardSet

_CALIBRATED, _PART = 1024, 256
"""The training images that set the statistics of a network with new weights, and a batch."""


def train_on_maps(config: Config, options: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """Train the configuration's Perceiver on the maps of a backbone, and test it.

    Args:
        config: The configuration with `model.adapter` of the kind `backbone`.
        options: `pretrained`: whether the backbone begins with the weights of an earlier training,
            or with new ones whose batch norms know the statistics of training images; and `frozen`:
            whether it is kept, or trained with the rest.
        console: The console.

    Returns:
        The same as `train_perceiver`.
    """
    weights = config.folder / "backbone.safetensors"
    save_file(_backbone(config, options["pretrained"]).state_dict(), str(weights))
    values = {"weights": str(weights), "frozen": options["frozen"]}
    config = with_values(config, {f"model.adapter.{name}": v for name, v in values.items()})
    trained, shard_set, model = trained_perceiver(config, console)
    return {**trained, "accuracy": test_accuracy(config, shard_set, model, model)}


def fit_linear(config: Config, options: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """Fit logistic regression to the means over places of the last map of a pretrained backbone.

    Args:
        config: The configuration with `model.adapter` of the kind `backbone`.
        options: None.
        console: The console.

    Returns:
        `accuracy` on the test split, and `parameters`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    backbone = _backbone(config, pretrained=True)
    shard_set = ShardSet.open(config.shards_folder, config.data.remote_reading)
    means, classes = {}, {}
    for split in ("train", "test"):
        images, targets = _images(config, shard_set, split)
        with torch.inference_mode():
            parts = [backbone(part)[LATE].mean(dim=(2, 3)) for part in images.split(_PART)]
        means[split], classes[split] = torch.cat(parts).numpy(), targets.numpy()
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    fitted.fit(means["train"], classes["train"])
    layer = fitted[-1]
    return {
        "accuracy": float((fitted.predict(means["test"]) == classes["test"]).mean()),
        "parameters": int(layer.coef_.size + layer.intercept_.size),
    }


def _backbone(config: Config, pretrained: bool) -> nn.Module:
    """Return the backbone on the CPU, in evaluation mode."""
    adapter = config.model.adapter
    assert isinstance(adapter, BackboneConfig)  # the study's arms have it
    torch.manual_seed(config.seed)
    module = build_module(adapter.module, adapter.arguments)
    model, image = config.model, image_format(config)
    if pretrained:
        pretrain(module, config.seed, image.height, model.pixel_mean, model.pixel_std)
        return module.eval()
    shard_set = ShardSet.open(config.shards_folder, config.data.remote_reading)
    images, _ = _images(config, shard_set, "train", _CALIBRATED)
    calibrate(module, list(images.split(_PART)))
    return module


def _images(
    config: Config, shard_set: ShardSet, split: str, most: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return standardised images `[images, channels, height, width]` and their classes."""
    images, targets = split_images(config, shard_set, split, torch.device("cpu"))
    images, targets = images[:most], targets[:most]
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    mean, std = (torch.tensor(v) for v in (config.model.pixel_mean, config.model.pixel_std))
    return ((scaled - mean) / std).permute(0, 3, 1, 2), targets
