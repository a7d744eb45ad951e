"""Perceiver IO's optical flow.

DeepMind's model reads pairs of frames in [-1, 1], of 368 × 496 pixels, as patches of 3 × 3 around
every pixel. The model here takes frames, uint8 or in [0, 1], and cuts the patches itself. For
larger frames, use `perceiver_model.families.flow.tiled_flow`.

transformers differs from DeepMind in two points, and `Fidelity` chooses between them:

- Its MLPs use the exact GELU instead of the tanh approximation.
- Its outputs are in units of 20 pixels. DeepMind's notebook multiplies them to get pixels.

transformers takes patches instead of frames, `[batch, 2, 27, height, width]`, with the 27 in the
order (row, column, channel), and only in the training size. It initialises the last layer at
random; DeepMind initialises it with zeros.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import torch

from perceiver_model.adapters.configs import VideoInput
from perceiver_model.config import DecoderConfig, FourierConfig
from perceiver_model.deepmind.architecture import Architecture, explicit_positions
from perceiver_model.deepmind.layers import (
    PREPROCESSOR,
    TensorMap,
    decoder_map,
    encoder_map,
    layer_map,
)
from perceiver_model.deepmind.settings import (
    Fidelity,
    read_encoder,
    read_gelu,
    read_precision,
    setting,
    write_encoder,
)
from perceiver_model.families.flow import OpticalFlow
from perceiver_model.families.flow_config import FlowConfig


class Flow(Architecture[FlowConfig]):
    """The class `PerceiverForOpticalFlow`."""

    name = "PerceiverForOpticalFlow"
    model = OpticalFlow
    tolerable = frozenset({"flow_scale"})
    irrelevant = frozenset({"input.mean", "input.std"})

    def recognises(self, names: Collection[str]) -> bool:
        return f"{PREPROCESSOR}.conv_after_patches.weight" in names

    def fits(self, config: object) -> bool:
        return isinstance(config, FlowConfig) and isinstance(config.positions, FourierConfig)

    def read_config(
        self,
        settings: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        *,
        fidelity: Fidelity,
        image_size: tuple[int, int] | None,
    ) -> FlowConfig:
        train_size = tuple(setting(settings, "train_size"))
        height, width = image_size or train_size
        return FlowConfig(
            input=VideoInput(num_frames=2, height=height, width=width),
            positions=FourierConfig(
                num_bands=64, max_resolution=train_size, precision=read_precision(fidelity)
            ),
            encoder=read_encoder(settings, fidelity),
            decoder=DecoderConfig(query_residual=False, gelu=read_gelu(settings, fidelity)),
            flow_scale=20.0 if fidelity == "deepmind" else 1.0,
        )

    def write_settings(self, config: FlowConfig) -> dict[str, Any]:
        if config.token_grid != tuple(config.max_resolution):
            raise ValueError(
                f"FlowConfig.positions.max_resolution = {tuple(config.max_resolution)}: "
                f"transformers has one size for it and for the frames, {config.token_grid}"
            )
        size = {"train_size": list(config.token_grid)}
        return write_encoder(config.encoder, config.input_channels) | size

    def image_size(self, config: FlowConfig) -> tuple[int, int]:
        return config.token_grid

    def explicit(self, config: FlowConfig) -> FlowConfig:
        positions = explicit_positions(config.positions, config.token_grid)
        return dataclasses.replace(super().explicit(config), positions=positions)

    def tensors(self, config: FlowConfig) -> list[TensorMap]:
        return [
            *layer_map("adapter.project", f"{PREPROCESSOR}.conv_after_patches"),
            *encoder_map(config.encoder),
            *decoder_map("decoder", output=True),
        ]
