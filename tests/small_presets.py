"""Every preset's model made small, with its structure and a batch of examples."""

import dataclasses
from collections.abc import Mapping

import torch

from perceiver_model.adapters.configs import (
    AudioInput,
    ClassInput,
    ImageInput,
    PointsInput,
    TextInput,
    VideoInput,
)
from perceiver_model.adapters.multimodal_config import MultimodalInput
from perceiver_model.config import FourierConfig
from perceiver_model.families.autoencoder import MultimodalAutoencoder
from perceiver_model.families.autoencoder_config import AutoencoderConfig
from perceiver_model.families.autoregressive import PerceiverAR
from perceiver_model.families.autoregressive_config import ARConfig
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.dense import DensePredictor
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.families.flow import OpticalFlow
from perceiver_model.families.flow_config import FlowConfig
from perceiver_model.families.language import MaskedLanguageModel
from perceiver_model.families.language_config import LanguageConfig
from perceiver_model.families.presets import PRESETS

MODELS = {
    ClassifierConfig: PerceiverClassifier,
    DenseConfig: DensePredictor,
    LanguageConfig: MaskedLanguageModel,
    ARConfig: PerceiverAR,
    FlowConfig: OpticalFlow,
    AutoencoderConfig: MultimodalAutoencoder,
}
# The largest values of the shrunken presets' fields; their structure stays.
LARGEST = {
    **dict.fromkeys(["num_heads", "num_cross_heads", "num_self_heads", "num_blocks"], 2),
    **dict.fromkeys(["num_cross_attends", "num_self_attends"], 2),
    **dict.fromkeys(["num_latents", "num_frames", "grid", "num_classes", "num_bands"], 4),
    **dict.fromkeys(["max_length", "num_points", "height", "width", "chunk_size"], 16),
    **dict.fromkeys(["latent_dim", "channels", "num_channels", "projected_channels"], 16),
    **dict.fromkeys(["cross_channels", "cross_value_channels", "query_channels"], 16),
    **dict.fromkeys(["self_channels", "self_value_channels", "decoded_channels"], 16),
    **dict.fromkeys(["qk_channels", "value_channels"], 16),
    "num_samples": 128,
}


def shrunken(value, largest=None):
    """A configuration with every number cut to its field's largest."""
    if dataclasses.is_dataclass(value):
        parts = {
            field.name: shrunken(getattr(value, field.name), LARGEST.get(field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
        if isinstance(value, FourierConfig):
            parts["max_resolution"] = None
        return dataclasses.replace(value, **parts)
    if isinstance(value, Mapping):
        return {name: shrunken(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(shrunken(part, largest) for part in value)
    return min(value, largest) if largest and isinstance(value, int) else value


def randomised(model):
    """Weights so large that all of them count, those that start at zero, too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def example(media, batch):
    match media:
        case ImageInput():
            return torch.rand(batch, media.height, media.width, media.channels)
        case VideoInput():
            return torch.rand(batch, *media.grid, media.channels)
        case AudioInput():
            return torch.rand(batch, media.num_samples) - 0.5
        case PointsInput():
            return torch.randn(batch, media.num_points, media.channels)
        case TextInput(max_length=length):
            return torch.randint(0, media.vocab_size, (batch, length))
        case ARConfig(max_length=length):
            return torch.randint(0, media.vocab_size, (batch, length))
        case MultimodalInput(modalities=parts):
            return {name: example(part.input, batch) for name, part in parts.items()}
        case ClassInput():
            return None
    raise AssertionError(f"no example of {media}")


def example_mask(media, inputs, batch):
    """Which inputs are valid: most of them, but none of the last sample's."""
    if isinstance(media, MultimodalInput):
        return {
            name: example_mask(part.input, inputs[name], batch)
            for name, part in media.modalities.items()
        }
    if inputs is None:
        return None
    without_channels = isinstance(media, ImageInput | VideoInput | PointsInput)
    mask = torch.rand(inputs.shape[:-1] if without_channels else inputs.shape) < 0.8
    mask[..., 0] = True
    mask[batch - 1] = False
    return mask


def small_preset(name):
    """The model, and its input's configuration."""
    config = shrunken(PRESETS[name])
    return randomised(MODELS[type(config)](config)), getattr(config, "input", config)
