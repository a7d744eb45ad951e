"""Adapters: standardise the raw inputs on the device and cut them into tokens.

The `forward(inputs, mask)` of each adapter returns the content of the tokens,
`[batch, tokens, channels]`, and a bool mask `[batch, tokens]` of the valid tokens, or None if all
tokens are valid. The content is float32. An adapter with weights returns the dtype of its weights,
and feature maps keep their own dtype. The input's mask is True where a pixel, sample, point or
column is valid. A token is valid if any part of it is valid. Invalid parts are set to zero first,
so their values have no influence.

The tokens are in the row-major order of `TokensConfig.token_grid`. A wrong shape or dtype raises
ValueError.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from perceiver_model.adapters.audio import ChunkAdapter, MelAdapter
from perceiver_model.adapters.classes import OneHotAdapter
from perceiver_model.adapters.configs import (
    AudioInput,
    Chunks,
    ClassInput,
    Columns,
    Conv,
    ConvStem,
    FeatureMapInput,
    ImageInput,
    Mel,
    OneHot,
    Patches,
    Pixels,
    Points,
    PointsInput,
    SpaceTimePatches,
    TableInput,
    TextInput,
    TokenEmbedding,
    VideoInput,
)
from perceiver_model.adapters.features import FeatureMapAdapter
from perceiver_model.adapters.image import ConvAdapter, PatchAdapter, PixelAdapter
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
    adapter = _token_adapter(config)
    match config.input, config.adapter:
        case (ImageInput() | VideoInput() | FeatureMapInput()) as media, Pixels(
            num_channels=int(num_channels)
        ):
            return ProjectedAdapter(adapter, media.channels, num_channels)
    return adapter


def _token_adapter(config: TokensConfig) -> nn.Module:
    """Build the adapter without the projection of its pixels (`Pixels.num_channels`)."""
    match config.input, config.adapter:
        case ImageInput() as image, Pixels():
            return PixelAdapter(image)
        case ImageInput() as image, Patches() as patches:
            return PatchAdapter(image, patches)
        case ImageInput() as image, Conv() as conv:
            return ConvAdapter(image, conv)
        case ImageInput() as image, ConvStem() as stem:
            return ConvStemAdapter(image, stem)
        case TextInput() as text, TokenEmbedding() as embedding:
            return TokenAdapter(text, embedding)
        case AudioInput() as audio, Chunks() as chunks:
            return ChunkAdapter(audio, chunks)
        case AudioInput() as audio, Mel() as mel:
            return MelAdapter(audio, mel)
        case VideoInput() as video, Pixels():
            return VideoPixelAdapter(video)
        case VideoInput() as video, SpaceTimePatches() as patches:
            return SpaceTimePatchAdapter(video, patches)
        case FeatureMapInput() as features, Pixels():
            return FeatureMapAdapter(features)
        case PointsInput() as cloud, Points() as points:
            return PointAdapter(cloud, points)
        case TableInput() as table, Columns() as columns:
            return ColumnAdapter(table, columns)
        case ClassInput() as classes, OneHot():
            return OneHotAdapter(classes)
        case MultimodalInput() as media, PaddedModalities() as padded:
            parts = {name: build_adapter(part) for name, part in media.modalities.items()}
            return MultimodalAdapter(media, padded, parts)
    raise AssertionError("refused by TokensConfig")
