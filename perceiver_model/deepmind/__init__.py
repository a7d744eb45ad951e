"""DeepMind's Perceiver IO weights, in the layout of their port to Hugging Face transformers.

    model = load_pretrained("language-perceiver")       # a folder: config.json, model.safetensors
    save_pretrained(model, "fine-tuned")                # which transformers' from_pretrained reads

Neither needs transformers.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from perceiver_model.deepmind.architecture import Architecture
from perceiver_model.deepmind.checkpoint import read_checkpoint, write_checkpoint
from perceiver_model.deepmind.flow import Flow
from perceiver_model.deepmind.imagenet import ConvClassifier, FourierClassifier, LearnedClassifier
from perceiver_model.deepmind.language import MaskedLanguage, TextClassifier
from perceiver_model.deepmind.layers import export_tensors, load_tensors
from perceiver_model.deepmind.multimodal import KineticsAutoencoder
from perceiver_model.deepmind.settings import Fidelity

ARCHITECTURES: tuple[Architecture[Any], ...] = (
    FourierClassifier(),
    LearnedClassifier(),
    ConvClassifier(),
    MaskedLanguage(),
    TextClassifier(),
    Flow(),
    KineticsAutoencoder(),
)
"""transformers' classes that can be read and written."""

__all__ = [
    "ARCHITECTURES",
    "Fidelity",
    "from_transformers_state",
    "load_pretrained",
    "save_pretrained",
    "to_transformers_state",
]


def load_pretrained(
    folder: str | os.PathLike[str],
    *,
    fidelity: Fidelity = "deepmind",
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """The model of a checkpoint folder, in float32 on the CPU, in evaluation mode.

    Args:
        folder: holds config.json and model.safetensors or pytorch_model.bin, as transformers'
            `save_pretrained` writes them.
        fidelity: whose function the weights are put into; see `Fidelity`.
        image_size: (height, width) of the images that the model shall read, where the weights allow
            any; None is what they were trained on.

    Raises ValueError for what is no such checkpoint, naming all missing and unexpected tensors.
    """
    settings, state_dict = read_checkpoint(folder)
    return from_transformers_state(state_dict, settings, fidelity=fidelity, image_size=image_size)


def from_transformers_state(
    state_dict: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    fidelity: Fidelity = "deepmind",
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """The same from a transformers model's `state_dict()` and `config.to_dict()`."""
    if fidelity not in ("deepmind", "transformers"):
        raise ValueError(f"fidelity {fidelity!r}: must be 'deepmind' or 'transformers'")
    architecture = _architecture_of_checkpoint(config, state_dict)
    ours = architecture.read_config(config, state_dict, fidelity=fidelity, image_size=image_size)
    model = architecture.model(ours)
    load_tensors(model, architecture.tensors(ours), state_dict)
    return model.eval()


def to_transformers_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors by transformers' names, copied.

    Raises ValueError as `save_pretrained` with `allow_differences`.
    """
    return _export(model, allow_differences=True)[1]


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], *, allow_differences: bool = False
) -> None:
    """Writes a checkpoint folder that transformers' `from_pretrained` reads as the same model.

    Args:
        allow_differences: write it, too, if transformers would read another function into the same
            tensors, such as its own padding in the convolutional stem.

    Raises ValueError for a model that isn't of one of transformers' classes, naming the fields of
    its configuration that transformers doesn't have, and for those differences.
    """
    settings, tensors = _export(model, allow_differences=allow_differences)
    write_checkpoint(folder, settings, tensors)


def _export(
    model: nn.Module, *, allow_differences: bool
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Settings and tensors of a model."""
    config = getattr(model, "config", None)
    for architecture in ARCHITECTURES:
        if architecture.fits(config):
            break
    else:
        known = ", ".join(architecture.name for architecture in ARCHITECTURES)
        raise ValueError(f"{type(model).__name__}: the model of none of {known}")
    settings = architecture.write_settings(config)
    architecture.check_written(config, settings, allow_differences=allow_differences)
    settings |= {
        "architectures": [architecture.name],
        "model_type": "perceiver",
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    return settings, export_tensors(model, architecture.tensors(config))


def _architecture_of_checkpoint(
    config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]
) -> Architecture[Any]:
    """That which the settings name, or, if they name none, whose tensors these are."""
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    if names := config.get("architectures"):
        for architecture in ARCHITECTURES:
            if architecture.name in names:
                return architecture
        raise ValueError(f"config.json: architectures = {names}: must be one of {known}")
    for architecture in ARCHITECTURES:
        if architecture.recognises(state_dict.keys()):
            return architecture
    raise ValueError(f"a state dict of none of {known}, and its settings name no architecture")
