"""Adapters: standardise the raw inputs on the device and cut them into tokens.

The `forward(inputs, mask)` of each adapter returns the content of the tokens,
`[batch, tokens, channels]`, and a bool mask `[batch, tokens]` of the valid tokens, or None if all
tokens are valid. A backbone returns such a pair for each of its maps. The content is float32. An
adapter with weights returns the dtype of its weights, and feature maps keep their own dtype. The
input's mask is True where a pixel, sample, point or column is valid. A token is valid if any part
of it is valid. Invalid parts are set to zero first, so their values have no influence.

The tokens are in the row-major order of `TokensConfig.token_grid`. A wrong shape or dtype raises
ValueError.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from perceiver_model.adapters.audio import ChunkAdapter, MelAdapter
from perceiver_model.adapters.backbone import BackboneAdapter
from perceiver_model.adapters.classes import OneHotAdapter
from perceiver_model.adapters.configs import (
    AudioInput,
    BackboneConfig,
    ChunksConfig,
    ClassInput,
    ColumnsConfig,
    ConvConfig,
    ConvStemConfig,
    FeatureMapInput,
    ImageInput,
    MelConfig,
    MelConvConfig,
    OneHotConfig,
    PatchesConfig,
    PixelsConfig,
    PointsConfig,
    PointsInput,
    SpaceTimePatchesConfig,
    TableInput,
    TextInput,
    TokenEmbeddingConfig,
    VideoInput,
)
from perceiver_model.adapters.features import FeatureMapAdapter
from perceiver_model.adapters.image import ConvAdapter, PatchAdapter, PixelAdapter
from perceiver_model.adapters.mel_conv import MelConvAdapter
from perceiver_model.adapters.multimodal import MultimodalAdapter
from perceiver_model.adapters.multimodal_config import MultimodalInput, PaddedModalities
from perceiver_model.adapters.points import PointAdapter
from perceiver_model.adapters.stem import ConvStemAdapter, ProjectedAdapter
from perceiver_model.adapters.table import ColumnAdapter, TableRows
from perceiver_model.adapters.text import TokenAdapter
from perceiver_model.adapters.video import SpaceTimePatchAdapter, VideoPixelAdapter
from perceiver_model.tokens_config import TokensConfig

Inputs = torch.Tensor | TableRows | Mapping[str, Any]
"""The inputs of adapters: a tensor, the rows of a table, or a mapping of modalities."""

Masks = torch.Tensor | Mapping[str, torch.Tensor | None]
"""The masks of inputs: bool, True where an input is valid; or a mapping of modalities."""


def build_adapter(config: TokensConfig) -> nn.Module:
    """Build the adapter that a configuration describes."""
    return _BUILDERS[type(config.input), type(config.adapter)](config.input, config.adapter)


def _of_pixels(module: Callable[[Any], nn.Module]) -> Callable[[Any, PixelsConfig], nn.Module]:
    """Return the builder of an adapter for pixels, with their projection if they have one."""

    def build(media: Any, pixels: PixelsConfig) -> nn.Module:
        adapter = module(media)
        if pixels.num_channels is None:
            return adapter
        return ProjectedAdapter(adapter, media.channels, pixels.num_channels)

    return build


def _one_hot(classes: ClassInput, _: OneHotConfig) -> nn.Module:
    return OneHotAdapter(classes)


def _multimodal(media: MultimodalInput, padded: PaddedModalities) -> nn.Module:
    parts = {name: build_adapter(part) for name, part in media.modalities.items()}
    return MultimodalAdapter(media, padded, parts)


_BUILDERS: dict[tuple[type, type], Callable[[Any, Any], nn.Module]] = {
    (ImageInput, PixelsConfig): _of_pixels(PixelAdapter),
    (ImageInput, PatchesConfig): PatchAdapter,
    (ImageInput, ConvConfig): ConvAdapter,
    (ImageInput, ConvStemConfig): ConvStemAdapter,
    (ImageInput, BackboneConfig): BackboneAdapter,
    (AudioInput, ChunksConfig): ChunkAdapter,
    (AudioInput, MelConfig): MelAdapter,
    (AudioInput, MelConvConfig): MelConvAdapter,
    (FeatureMapInput, MelConvConfig): MelConvAdapter,
    (TextInput, TokenEmbeddingConfig): TokenAdapter,
    (VideoInput, PixelsConfig): _of_pixels(VideoPixelAdapter),
    (VideoInput, SpaceTimePatchesConfig): SpaceTimePatchAdapter,
    (FeatureMapInput, PixelsConfig): _of_pixels(FeatureMapAdapter),
    (PointsInput, PointsConfig): PointAdapter,
    (TableInput, ColumnsConfig): ColumnAdapter,
    (ClassInput, OneHotConfig): _one_hot,
    (MultimodalInput, PaddedModalities): _multimodal,
}
"""The builder of each adapter, by the classes of its input and of its configuration.

An adapter has one line per input that it reads. The class of its configuration is also in the union
`MediaAdapter` of `configs.py`, and names the same inputs in `reads`.
"""
