"""The cost of a model: its forward FLOPs, from the configuration alone, and its parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from perceiver_model.adapters.multimodal_config import MultimodalInput
from perceiver_model.config import LearnedPositions, PositionConfig
from perceiver_model.families.autoencoder_config import AutoencoderConfig, GridOutput
from perceiver_model.families.autoregressive_config import ARConfig, autoregressive_flops
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.families.flow_config import FlowConfig
from perceiver_model.families.language_config import LanguageConfig
from perceiver_model.families.queries_config import QueriesConfig
from perceiver_model.layer_flops import (
    decoder_flops,
    encoder_flops,
    latent_self_attend_flops,
    matmul_flops,
)
from perceiver_model.tokens_config import TokensConfig

if TYPE_CHECKING:
    from torch import nn

    from perceiver_model.families.presets import ModelConfig


def forward_flops(config: ModelConfig) -> int:
    """Return the FLOPs of one forward pass of one sample, counted as `layer_flops` explains.

    The paper reports 707.2 G for ImageNet with 8 cross-attends and 404.3 G with one. Perceiver IO
    reports 407 G with Fourier features and 369 G with the convolutional stem.
    """
    if isinstance(config, ARConfig):
        return autoregressive_flops(config)
    if isinstance(config, LanguageConfig):
        return _language_flops(config)
    if isinstance(config, FlowConfig):
        return _flow_flops(config)
    if isinstance(config, AutoencoderConfig):
        return _autoencoder_flops(config)
    encoder = encoder_flops(
        config.encoder,
        tokens=[math.prod(grid) for grid in config.token_grids],
        input_channels=config.input_channels,
    )
    if isinstance(config, DenseConfig):
        head = _dense_flops(config)
    elif isinstance(config, QueriesConfig):
        head = _queries_flops(config)
    else:
        head = _head_flops(config)
    return _token_flops(config) + encoder + head


def recomputed_flops(config: ModelConfig, share: float) -> int:
    """Return the FLOPs of one sample that activation checkpointing computes again.

    Args:
        config: The configuration of the model.
        share: The share of the latents' self-attends that are computed again, as
            `PerceiverEncoder.checkpointed_share`. A Perceiver AR takes none.
    """
    if isinstance(config, ARConfig):
        return 0
    count = round(share * config.encoder.num_blocks * config.encoder.num_self_attends)
    return count * latent_self_attend_flops(config.encoder)


def num_tokens(config: ModelConfig) -> int:
    """Return the number of tokens of one sample that the cross-attends read, its index points.

    Several cross-attends that read the same tokens count once. The feature maps of a backbone,
    which successive cross-attends read, add up. Texts count at their full length.
    """
    if isinstance(config, ARConfig):
        return config.max_length
    if isinstance(config, LanguageConfig):
        return config.input.max_length
    if isinstance(config, FlowConfig):
        return math.prod(config.token_grid)
    if isinstance(config, AutoencoderConfig):
        return config.num_tokens
    return sum(math.prod(grid) for grid in config.token_grids)


def num_parameters(module: nn.Module) -> int:
    """Return the number of parameters; shared parameters count once.

    Under ZeRO stage 3, call this before DeepSpeed wraps the module.
    """
    return sum(parameter.numel() for parameter in module.parameters())


def _language_flops(config: LanguageConfig) -> int:
    tokens, channels = config.input.max_length, config.input_channels
    decoder = decoder_flops(
        config.decoder,
        queries=tokens,
        query_channels=channels,
        num_latents=config.encoder.num_latents,
        latent_dim=config.encoder.latent_dim,
        output_channels=config.input.vocab_size,  # the product with the embeddings
    )
    return encoder_flops(config.encoder, tokens=tokens, input_channels=channels) + decoder


def _head_flops(config: ClassifierConfig) -> int:
    encoder = config.encoder
    if config.decoder is None:
        return matmul_flops(1, encoder.latent_dim, config.num_classes)
    return decoder_flops(
        config.decoder,
        queries=1,
        query_channels=encoder.latent_dim,
        num_latents=encoder.num_latents,
        latent_dim=encoder.latent_dim,
        output_channels=config.num_classes,
    )


def _queries_flops(config: QueriesConfig) -> int:
    return decoder_flops(
        config.decoder,
        queries=config.num_queries,
        query_channels=config.query_width,
        num_latents=config.encoder.num_latents,
        latent_dim=config.encoder.latent_dim,
        output_channels=config.output_channels,
    )


def _dense_flops(config: DenseConfig) -> int:
    outputs = math.prod(config.outputs)
    decoder = decoder_flops(
        config.decoder,
        queries=outputs,
        query_channels=config.query_channels,
        num_latents=config.encoder.num_latents,
        latent_dim=config.encoder.latent_dim,
        output_channels=config.output_channels,
    )
    return _position_flops(config.query_positions, outputs) + decoder


def _flow_flops(config: FlowConfig) -> int:
    tokens, frames = math.prod(config.token_grid), config.input
    patch = frames.num_frames * config.patch_size**2 * frames.channels
    decoder = decoder_flops(
        config.decoder,
        queries=tokens,
        query_channels=config.input_channels,
        num_latents=config.encoder.num_latents,
        latent_dim=config.encoder.latent_dim,
        output_channels=2,
    )
    return (
        matmul_flops(tokens, patch, config.num_channels)
        + _position_flops(config.positions, tokens)
        + encoder_flops(config.encoder, tokens=tokens, input_channels=config.input_channels)
        + decoder
    )


def _autoencoder_flops(config: AutoencoderConfig) -> int:
    tokens = sum(_token_flops(part) for part in config.input.modalities.values())
    encoder = encoder_flops(
        config.encoder, tokens=config.num_tokens, input_channels=config.input_channels
    )
    decoder = decoder_flops(
        config.decoder,
        queries=config.num_outputs,
        query_channels=config.query_channels,
        num_latents=config.encoder.num_latents,
        latent_dim=config.encoder.latent_dim,
        output_channels=config.decoded_channels,
    )
    outputs = 0
    for output in config.outputs.values():
        outputs += matmul_flops(output.num_outputs, config.decoded_channels, output.num_channels)
        if isinstance(output, GridOutput):
            outputs += _position_flops(output.positions, output.num_outputs)
    return tokens + encoder + decoder + outputs


def _token_flops(config: TokensConfig) -> int:
    """Return the FLOPs of everything before the encoder."""
    if isinstance(config.input, MultimodalInput):
        return sum(_token_flops(part) for part in config.input.modalities.values())
    grids = config.token_grids
    positions = sum(_position_flops(config.positions, math.prod(grid)) for grid in grids)
    adapter: int = config.adapter.flops(config.input)
    return adapter + positions


def _position_flops(positions: PositionConfig | None, tokens: int) -> int:
    """Return the FLOPs of projecting learned positions. Fourier features are constants."""
    if not isinstance(positions, LearnedPositions):
        return 0
    return matmul_flops(tokens, positions.num_channels, positions.projected_channels or 0)
