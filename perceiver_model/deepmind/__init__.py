"""DeepMind's Perceiver IO weights, in the layout of their port to Hugging Face transformers.

    model = load_pretrained("language-perceiver")       # a folder: config.json, model.safetensors
    save_pretrained(model, "fine-tuned")                # transformers' from_pretrained reads it

Neither function needs transformers.
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
from perceiver_model.deepmind.layers import check_tensors, export_tensors, load_tensors
from perceiver_model.deepmind.multimodal import KineticsAutoencoder
from perceiver_model.deepmind.settings import Fidelity, check_sizes

ARCHITECTURES: tuple[Architecture[Any], ...] = (
    FourierClassifier(),
    LearnedClassifier(),
    ConvClassifier(),
    MaskedLanguage(),
    TextClassifier(),
    Flow(),
    KineticsAutoencoder(),
)
"""The classes of transformers that can be read and written."""

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
    """Load the model of a checkpoint folder, in float32 on the CPU, in evaluation mode.

    Args:
        folder: The folder, with config.json and either model.safetensors or pytorch_model.bin, as
            transformers' `save_pretrained` writes them.
        fidelity: The function that the model computes with the weights, see `Fidelity`.
        image_size: The (height, width) of the images to read, if the weights allow any size. None
            means the size that they were trained on.

    Raises:
        ValueError: If the folder is not such a checkpoint. The error names all missing and
            unexpected tensors.
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
    """Load the model from a transformers model's `state_dict()` and `config.to_dict()`.

    Args:
        state_dict: The tensors by transformers' names.
        config: The settings.
        fidelity: As in `load_pretrained`.
        image_size: As in `load_pretrained`.

    Raises:
        ValueError: As `load_pretrained` does.
    """
    if fidelity not in ("deepmind", "transformers"):
        raise ValueError(f"fidelity {fidelity!r}: must be 'deepmind' or 'transformers'")
    architecture = _architecture_of_checkpoint(config, state_dict)
    check_sizes(config, len(state_dict))
    ours = architecture.read_config(config, state_dict, fidelity=fidelity, image_size=image_size)
    maps = architecture.tensors(ours)
    with torch.device("meta"):  # settings that the tensors do not fit take no memory
        check_tensors(architecture.model(ours), maps, state_dict)
    model = architecture.model(ours)
    load_tensors(model, maps, state_dict)
    return model.eval()


def to_transformers_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the model's tensors by transformers' names.

    Raises:
        ValueError: As `save_pretrained` does with `allow_differences`.
    """
    return _export(model, allow_differences=True)[1]


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], *, allow_differences: bool = False
) -> None:
    """Write a checkpoint folder that transformers' `from_pretrained` reads as the same model.

    Args:
        model: The model.
        folder: The folder to write.
        allow_differences: Whether to write it even if transformers computes another function from
            the same tensors, for example with its own padding in the convolutional stem.

    Raises:
        ValueError: If the model is of none of transformers' classes, or has such differences. The
            error names the fields that transformers does not support.
    """
    settings, tensors = _export(model, allow_differences=allow_differences)
    write_checkpoint(folder, settings, tensors)


def _export(
    model: nn.Module, *, allow_differences: bool
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the settings and the tensors of a model."""
    config = getattr(model, "config", None)
    for architecture in ARCHITECTURES:
        if architecture.fits(config):
            break
    else:
        known = ", ".join(architecture.name for architecture in ARCHITECTURES)
        raise ValueError(f"{type(model).__name__}: not a model of any of {known}")
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
    """Return the architecture that the settings name, or else the one that the tensors fit."""
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    if names := config.get("architectures"):
        for architecture in ARCHITECTURES:
            if architecture.name in names:
                return architecture
        raise ValueError(f"config.json: architectures is {names}; must be one of {known}")
    for architecture in ARCHITECTURES:
        if architecture.recognises(state_dict.keys()):
            return architecture
    raise ValueError(f"the state dict fits none of {known}, and its settings name no architecture")
