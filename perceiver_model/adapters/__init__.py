"""Adapters: raw inputs, standardised on the device and cut into tokens.

`forward(inputs, mask)` of each returns the tokens' content, float32 unless the adapter has weights
(then in theirs), `[batch, tokens, channels]`, and a bool mask `[batch, tokens]` of valid tokens,
or None if all are. The input's mask is True where a pixel or sample is valid; a token is valid if
any part of it is. Invalid pixels and samples are set to zero first, so what they hold is without
influence.

Tokens come in row-major order of `ClassifierConfig.token_grid`. Wrong shapes and dtypes raise
ValueError.
"""

from torch import nn

from perceiver_model.adapters.audio import ChunkAdapter, MelAdapter
from perceiver_model.adapters.image import ConvAdapter, PatchAdapter, PixelAdapter
from perceiver_model.classifier_config import ClassifierConfig
from perceiver_model.inputs import AudioInput, Chunks, Conv, ImageInput, Mel, Patches, Pixels


def build_adapter(config: ClassifierConfig) -> nn.Module:
    """The adapter of a configuration."""
    match config.input, config.adapter:
        case ImageInput() as image, Pixels():
            return PixelAdapter(image)
        case ImageInput() as image, Patches() as patches:
            return PatchAdapter(image, patches)
        case ImageInput() as image, Conv() as conv:
            return ConvAdapter(image, conv)
        case AudioInput() as audio, Chunks() as chunks:
            return ChunkAdapter(audio, chunks)
        case AudioInput() as audio, Mel() as mel:
            return MelAdapter(audio, mel)
    raise AssertionError("refused by ClassifierConfig")
