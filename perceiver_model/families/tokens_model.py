"""The base of the models with one input: its adapter, its positions and the encoder."""

import torch
from torch import nn

from perceiver_model.adapters.backbone import BackboneAdapter
from perceiver_model.adapters.build import Inputs, Masks, build_adapter
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import EncoderConfig
from perceiver_model.perceiver import EncoderInputs, PerceiverEncoder
from perceiver_model.positions import build_positions
from perceiver_model.tokens_config import TokensConfig, max_resolution


class TokensModel(nn.Module):
    """A model that turns its input into tokens and encodes them. A subclass adds the outputs.

    Args:
        config: The configuration of the model.
        encoder: The configuration of the encoder.
        positions: The table of the tokens' Fourier features, floating point
            `[tokens, position_channels]`, as `position_table` returns. None computes it. It is not
            part of the state dict.

    Raises:
        ValueError: If the table does not fit the token grid of the configuration.
    """

    config: TokensConfig

    def __init__(
        self, config: TokensConfig, encoder: EncoderConfig, positions: torch.Tensor | None
    ) -> None:
        super().__init__()
        self.config = config
        if config.adapter.is_successive:
            self.adapter = build_adapter(config)
            self.positions: nn.Module = self._positions_of_maps(positions)
        else:
            self.positions = build_positions(
                config.positions, config.token_grid, config.max_resolution, positions
            )
            self.adapter = build_adapter(config)
        self.encoder = PerceiverEncoder(encoder, input_channels=config.input_channels)

    def _positions_of_maps(self, table: torch.Tensor | None) -> nn.ModuleList:
        """Return the positions of each of a backbone's maps."""
        assert isinstance(self.adapter, BackboneAdapter)
        if table is not None:
            raise ValueError("positions: given as a table, but a backbone has a grid for each map")
        chosen = self.config.positions
        return nn.ModuleList(
            build_positions(chosen, grid, max_resolution(chosen, grid))
            for grid in self.adapter.grids
        )

    def input_array(self, inputs: Inputs, mask: Masks | None = None) -> EncoderInputs:
        """Return the tokens that the encoder reads. The arguments are those of `forward`."""
        dtype = self.encoder.latents.dtype
        if isinstance(self.positions, nn.ModuleList):
            return tuple(
                InputArray(content.to(dtype), positions(), token_mask)
                for positions, (content, token_mask) in zip(
                    self.positions, self.adapter(inputs, mask), strict=True
                )
            )
        content, token_mask = self.adapter(inputs, mask)
        return InputArray(content.to(dtype), self.positions(), token_mask)
