"""Dense prediction with Perceiver IO: one output per element of a grid (IO, section 3.2)."""

import math

import torch

from perceiver_model.adapters.build import Inputs, Masks
from perceiver_model.attention.tokens import InputArray
from perceiver_model.decoder import PerceiverDecoder
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.families.tokens_model import TokensModel
from perceiver_model.output_queries import (
    OutputPositions,
    check_indices,
    content_at,
    index_parts,
    nearest_tokens,
    positions_at,
)


class DensePredictor(TokensModel):
    """A model with one output per position, for segmentation, depth, flow and similar tasks.

    The loss defines the meaning of the outputs: logits of classes for cross-entropy, or regressed
    values.

    Args:
        config: The configuration of the model.
        positions: The table of the tokens' Fourier features, as in `PerceiverClassifier`.
    """

    config: DenseConfig

    def __init__(self, config: DenseConfig, positions: torch.Tensor | None = None) -> None:
        super().__init__(config, config.encoder, positions)
        self.query_positions = OutputPositions(config.query_positions, config.outputs)
        self.decoder = PerceiverDecoder(
            config.decoder,
            query_channels=config.query_channels,
            latent_dim=config.encoder.latent_dim,
            output_channels=config.output_channels,
        )

    def forward(
        self,
        inputs: Inputs,
        mask: Masks | None = None,
        *,
        output_grid: tuple[int, ...] | None = None,
        indices: torch.Tensor | None = None,
        chunk_size: int | None = None,
    ) -> torch.Tensor:
        """Return the outputs `[batch, *output_grid, output_channels]`.

        The outputs are float32, or float64 for a float64 model.

        Args:
            inputs: The inputs, as in `PerceiverClassifier.forward`.
            mask: The valid inputs, as in `PerceiverClassifier.forward`. Invalid inputs are not
                read, but outputs at their positions are still predicted.
            output_grid: Another resolution than the configured one, over the same extent.
            indices: The outputs to decode, as row-major indices in the output grid, int64
                `[outputs]`, or `[batch, outputs]` for different outputs of each sample. The result
                is then `[batch, outputs, output_channels]`. A training step needs only the outputs
                in its loss.
            chunk_size: The number of outputs to decode at a time, which saves memory. None decodes
                all at once.

        Raises:
            ValueError: If an argument does not fit the configuration.
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
            assert isinstance(tokens, InputArray)  # the configuration refuses several
            tokens_there = nearest_tokens(part, grid, self.config.token_grid)
            content = content_at(tokens.content, tokens_there)
            return torch.cat([content, queries.expand(content.shape[0], -1, -1)], dim=-1)

        parts = (queries_at(part) for part in index_parts(asked, chunk_size))
        outputs = torch.cat(list(self.decoder.decode_parts(parts, latents)), dim=1)
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        return outputs if indices is not None else outputs.unflatten(1, grid)
