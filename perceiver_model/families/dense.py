"""Dense prediction with Perceiver IO: an output for every element of a grid (IO, section 3.2)."""

import math

import torch
from torch import nn

from perceiver_model.adapters.build import Inputs, Masks, build_adapter
from perceiver_model.attention.tokens import InputArray
from perceiver_model.decoder import PerceiverDecoder
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.output_queries import (
    OutputPositions,
    check_indices,
    content_at,
    index_parts,
    nearest_tokens,
    positions_at,
)
from perceiver_model.perceiver import PerceiverEncoder
from perceiver_model.positions import build_positions


class DensePredictor(nn.Module):
    """Segmentation, depth, flow and the like: the decoder is asked at every output position.

    What the outputs mean is the loss's: logits of classes for cross-entropy, or regressed values.

    Args:
        positions: as of `PerceiverClassifier`.
    """

    def __init__(self, config: DenseConfig, positions: torch.Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.positions = build_positions(
            config.positions, config.token_grid, config.max_resolution, positions
        )
        self.adapter = build_adapter(config)
        self.encoder = PerceiverEncoder(config.encoder, input_channels=config.input_channels)
        self.query_positions = OutputPositions(config.query_positions, config.outputs)
        self.decoder = PerceiverDecoder(
            config.decoder,
            query_channels=config.query_channels,
            latent_dim=config.encoder.latent_dim,
            output_channels=config.output_channels,
        )

    def input_array(self, inputs: Inputs, mask: Masks | None = None) -> InputArray:
        """The tokens that the encoder reads; arguments as of `forward`."""
        content, token_mask = self.adapter(inputs, mask)
        return InputArray(content.to(self.encoder.latents.dtype), self.positions(), token_mask)

    def forward(
        self,
        inputs: Inputs,
        mask: Masks | None = None,
        *,
        output_grid: tuple[int, ...] | None = None,
        indices: torch.Tensor | None = None,
        chunk_size: int | None = None,
    ) -> torch.Tensor:
        """`[batch, *output_grid, output_channels]`, float32 or, of a float64 model, float64.

        Args:
            inputs, mask: as of `PerceiverClassifier.forward`. Nothing invalid is read; outputs
                there are predicted all the same.
            output_grid: another resolution than the configured one, over the same extent.
            indices: only these outputs, as row-major numbers in the output grid, int64 `[outputs]`,
                or `[batch, outputs]` for each sample's own; the result is then `[batch, outputs,
                output_channels]`. A training step needs only the outputs that its loss looks at.
            chunk_size: decode so many outputs at a time, for less memory.

        Raises ValueError for arguments that don't fit the configuration.
        """
        tokens = self.input_array(inputs, mask)
        tables = self.query_positions(output_grid)
        grid = output_grid or self.config.outputs
        latents = self.encoder(tokens)
        if indices is None:
            asked = torch.arange(math.prod(grid), device=latents.device)
        else:
            asked = indices
            check_indices(indices, math.prod(grid), latents.shape[0], "indices")

        def queries_at(part: torch.Tensor) -> torch.Tensor:
            queries = positions_at(tables, part).to(latents.dtype)
            if not self.config.query_tokens:
                return queries
            tokens_there = nearest_tokens(part, grid, self.config.token_grid)
            content = content_at(tokens.content, tokens_there)
            return torch.cat([content, queries.expand(content.shape[0], -1, -1)], dim=-1)

        parts = (queries_at(part) for part in index_parts(asked, chunk_size))
        outputs = torch.cat(list(self.decoder.decode_parts(parts, latents)), dim=1)
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        return outputs if indices is not None else outputs.unflatten(1, grid)
