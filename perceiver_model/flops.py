"""What a model costs: forward FLOPs from its configuration alone, and its parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from perceiver_model.classifier_config import ClassifierConfig
from perceiver_model.inputs import AudioInput, Conv, ImageInput, Mel

if TYPE_CHECKING:
    from torch import nn


def forward_flops(config: ClassifierConfig) -> int:
    """FLOPs of one forward pass of one sample, at 2 per multiply-add, of matrix products only.

    The paper publishes 707.2 G for ImageNet with 8 cross-attends and 404.3 G with one.
    """
    encoder = config.encoder
    cross_attends = encoder.num_cross_attends * _cross_attend_flops(config)
    self_attends = encoder.num_blocks * encoder.num_self_attends * _self_attend_flops(config)
    head = _matmul_flops(1, encoder.latent_dim, config.num_classes)
    return _adapter_flops(config) + cross_attends + self_attends + head


def num_parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones once. Under ZeRO stage 3, ask before the engine wraps."""
    return sum(parameter.numel() for parameter in module.parameters())


def _matmul_flops(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def _mlp_flops(tokens: int, dim: int, widening: int) -> int:
    return 2 * _matmul_flops(tokens, dim, widening * dim)


def _attention_flops(queries: int, keys: int, channels: int) -> int:
    """Scores and weighted sum, over all heads."""
    return 2 * _matmul_flops(queries, channels, keys)


def _cross_attend_flops(config: ClassifierConfig) -> int:
    latents, dim = config.encoder.num_latents, config.encoder.latent_dim
    tokens, channels = math.prod(config.token_grid), config.cross_channels
    return (
        2 * _matmul_flops(latents, dim, channels)  # queries and output
        + 2 * _matmul_flops(tokens, config.input_channels, channels)  # keys and values
        + _attention_flops(latents, tokens, channels)
        + _mlp_flops(latents, dim, config.encoder.cross_widening)
    )


def _self_attend_flops(config: ClassifierConfig) -> int:
    latents, dim = config.encoder.num_latents, config.encoder.latent_dim
    return (
        4 * _matmul_flops(latents, dim, dim)  # queries, keys, values and output
        + _attention_flops(latents, latents, dim)
        + _mlp_flops(latents, dim, config.encoder.self_widening)
    )


def _adapter_flops(config: ClassifierConfig) -> int:
    match config.input, config.adapter:
        case ImageInput() as image, Conv(num_channels=channels):
            pixels, tokens = image.height * image.width, math.prod(config.token_grid)
            return _matmul_flops(pixels, 5 * 5 * image.channels, channels) + _matmul_flops(
                tokens, 3 * 3 * channels, channels
            )
        case AudioInput() as audio, Mel() as mel:
            num_bins = mel.fft_size(audio.sample_rate) // 2 + 1
            return _matmul_flops(mel.num_frames(audio), num_bins, mel.num_mels)
    return 0
