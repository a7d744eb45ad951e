"""The backbone of a model in a training: it is checked before the start, and gets its weights."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from perceiver_model.adapters.backbone import BackboneAdapter
from perceiver_model.adapters.backbone_config import backbone_of
from perceiver_model.adapters.backbone_module import load_weights_file
from perceiver_model.adapters.configs import ImageInput
from pipeline.config.model import ModelConfig
from pipeline.errors import UserError
from pipeline.training.agreement import every_rank
from shards.digests import stream_sha256

WEIGHTS_FIELD = "model.adapter.weights"


def check_backbone(model: ModelConfig, image: Any) -> None:
    """Build the backbone with its weights, and refuse one that cannot be trained exactly.

    Args:
        model: The section `model` of the configuration.
        image: The input of the model's configuration.

    Raises:
        UserError: The module cannot be built, gives no such maps, does not fit its weights, or
            has a state of its own in training.
    """
    backbone = backbone_of(model)
    if backbone is None:
        return
    assert isinstance(image, ImageInput)  # the configuration refuses other inputs
    with torch.random.fork_rng(devices=[]):
        try:
            adapter = BackboneAdapter(image, backbone)
        except ValueError as error:
            raise UserError(f"model.adapter: {error}") from None
        module = adapter.module
        if not backbone.frozen and backbone.weights is None:
            for name, part in module.named_modules():
                if getattr(part, "running_mean", None) is not None:
                    raise UserError(
                        f"model.adapter: {name} of the backbone is a {type(part).__name__}, whose "
                        "running statistics stay as they are: give weights that hold them, or use "
                        "a norm without statistics, such as GroupNorm"
                    )
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        with torch.no_grad():
            adapter(torch.rand(2, *image.grid, image.channels))
        for name, buffer in module.named_buffers():
            if not torch.equal(buffer, before[name]):
                raise UserError(
                    f"model.adapter: {name} of the backbone changes while it trains, on each "
                    "worker in another way; leave out the layer that keeps it, or set frozen"
                )


def weights_fingerprint(model: ModelConfig) -> dict[str, str]:
    """Return the sha256 of the backbone's weights, which counts in place of their path.

    Raises:
        UserError: The file cannot be read.
    """
    backbone = backbone_of(model)
    if backbone is None or backbone.weights is None:
        return {}
    return {WEIGHTS_FIELD: f"sha256:{_sha256(backbone.weights)}"}


def load_backbone(model: Any, config: ModelConfig) -> None:
    """Load the backbone's weights at the start of a training. All ranks must call this.

    Args:
        model: The model, without a compiled backbone.
        config: The section `model` of the configuration.

    Raises:
        UserError: All ranks raise it. A rank cannot read the file, or finds another one.
    """
    backbone = backbone_of(config)
    if backbone is None or backbone.weights is None:
        return
    path, digest = backbone.weights, ""

    def load() -> None:
        nonlocal digest
        digest = _sha256(path)
        try:
            load_weights_file(model.adapter.module, path)
        except ValueError as error:
            raise UserError(f"model.adapter: {error}") from None

    every_rank(load)
    digests = [""] * dist.get_world_size()
    dist.all_gather_object(digests, digest)
    if len(set(digests)) > 1:
        raise UserError(
            f"{WEIGHTS_FIELD}: {path} differs between workers; put it on storage that all "
            "machines share"
        )


def _sha256(path: str) -> str:
    try:
        if not Path(path).is_file():
            raise UserError(f"{WEIGHTS_FIELD}: {path}: there is no such file")
        with Path(path).open("rb") as file:
            return stream_sha256(file)
    except OSError as error:
        raise UserError(f"{WEIGHTS_FIELD}: {path}: cannot be read ({error.strerror})") from None
