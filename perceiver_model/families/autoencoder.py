"""Multimodal autoencoding with Perceiver IO (IO, section 4.3), between any modalities."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from perceiver_model.adapters.build import build_adapter
from perceiver_model.adapters.modality_padding import ModalityPadding
from perceiver_model.adapters.multimodal import MultimodalAdapter
from perceiver_model.attention.multi_head import linear
from perceiver_model.attention.tokens import InputArray
from perceiver_model.decoder import PerceiverDecoder
from perceiver_model.families.autoencoder_config import AutoencoderConfig, GridOutput, VectorOutput
from perceiver_model.output_queries import (
    LearnedQueries,
    OutputPositions,
    QueriesAt,
    check_indices,
    index_parts,
    positions_at,
)
from perceiver_model.perceiver import PerceiverEncoder


class MultimodalAutoencoder(nn.Module):
    """A model that reads all modalities into latents and decodes them, or other tasks, from these.

    One decoder serves all outputs. Their queries are padded to one width with a vector that is
    learned for the output. Each output has its own linear layer after the decoder.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        parts = {name: build_adapter(part) for name, part in config.input.modalities.items()}
        self.adapter = MultimodalAdapter(config.input, config.adapter, parts)
        self.encoder = PerceiverEncoder(config.encoder, input_channels=config.input_channels)
        self.queries = nn.ModuleDict(
            {name: _build_queries(output) for name, output in config.outputs.items()}
        )
        self.query_padding = ModalityPadding(
            {name: output.query_channels for name, output in config.outputs.items()},
            embedding_channels=config.query_embedding_channels,
        )
        self.decoder = PerceiverDecoder(
            config.decoder,
            query_channels=config.query_channels,
            latent_dim=config.encoder.latent_dim,
            output_channels=config.decoded_channels,
        )
        self.outputs = nn.ModuleDict(
            {
                name: linear(config.decoded_channels, output.num_channels)
                for name, output in config.outputs.items()
            }
        )

    def forward(
        self,
        inputs: Mapping[str, Any],
        masks: Mapping[str, torch.Tensor | None] | None = None,
        *,
        indices: Mapping[str, torch.Tensor | None] | None = None,
        chunk_size: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the outputs of `decode` for the inputs of `encode`.

        Args:
            inputs: The inputs of the modalities, as `MultimodalAdapter.forward` takes them.
            masks: The masks of the modalities.
            indices: The outputs to decode, as in `decode`.
            chunk_size: The number of queries to decode at a time, as in `decode`.
        """
        latents = self.encode(inputs, masks)
        return self.decode(latents, indices=indices, chunk_size=chunk_size)

    def encode(
        self,
        inputs: Mapping[str, Any],
        masks: Mapping[str, torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """Return the latents `[batch, num_latents, latent_dim]`.

        The arguments are those of `MultimodalAdapter.forward`.
        """
        content, token_mask = self.adapter(inputs, masks)
        return self.encoder(InputArray(content.to(self.encoder.latents.dtype), mask=token_mask))

    def decode(
        self,
        latents: torch.Tensor,
        *,
        indices: Mapping[str, torch.Tensor | None] | None = None,
        chunk_size: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the outputs by name, in float32, or in float64 for a float64 model.

        A complete output has the shape `[batch, *grid, num_channels]`, or `[batch, num_channels]`
        without a grid. Selected outputs have the shape `[batch, outputs, num_channels]`.

        Args:
            latents: The latents `[batch, num_latents, latent_dim]`.
            indices: The outputs to decode, by name. A value is None for the complete output, or the
                row-major indices in its grid, int64 `[outputs]`, or `[batch, outputs]` for
                different outputs of each sample. Missing names are not decoded. None decodes every
                output completely.
            chunk_size: The number of queries to decode at a time, which saves memory. None decodes
                all at once.

        Raises:
            ValueError: If a name is unknown or an index is outside a grid.
        """
        asked = dict.fromkeys(self.config.outputs) if indices is None else indices
        if unknown := sorted(set(asked) - set(self.config.outputs)):
            raise ValueError(f"indices for {unknown}: outputs are {list(self.config.outputs)}")
        numbers = {name: self._numbers(name, asked[name], latents) for name in asked}
        queries_at = {name: self._queries_at(name, latents.dtype) for name in asked}
        parts = [(name, part) for name in asked for part in index_parts(numbers[name], chunk_size)]
        queries = (queries_at[name](part) for name, part in parts)
        decoded: dict[str, list[torch.Tensor]] = {name: [] for name in asked}
        # One call decodes all outputs, so the latents' keys and values are computed once.
        for (name, _), part in zip(parts, self.decoder.decode_parts(queries, latents), strict=True):
            decoded[name].append(self.outputs[name](part))
        return {
            name: self._shaped(name, torch.cat(parts, dim=1), whole=asked[name] is None)
            for name, parts in decoded.items()
        }

    def _numbers(
        self, name: str, indices: torch.Tensor | None, latents: torch.Tensor
    ) -> torch.Tensor:
        """Return the int64 indices of the requested elements of an output."""
        num_outputs = self.config.outputs[name].num_outputs
        if indices is None:
            return torch.arange(num_outputs, device=latents.device)
        check_indices(indices, num_outputs, latents.shape[0], f"indices[{name!r}]")
        return indices

    def _shaped(self, name: str, result: torch.Tensor, *, whole: bool) -> torch.Tensor:
        """Reshape an output `[batch, outputs, num_channels]` to the shape of `decode`'s result."""
        result = result if result.dtype == torch.float64 else result.float()
        output = self.config.outputs[name]
        if not whole:
            return result
        if isinstance(output, VectorOutput):
            return result.squeeze(1)
        return result.unflatten(1, output.grid)

    def _queries_at(self, name: str, dtype: torch.dtype) -> QueriesAt:
        queries = self.queries[name]
        if isinstance(queries, LearnedQueries):
            return lambda numbers: self.query_padding(name, queries(numbers))
        tables = queries()
        return lambda numbers: self.query_padding(name, positions_at(tables, numbers).to(dtype))


def _build_queries(output: GridOutput | VectorOutput) -> nn.Module:
    if isinstance(output, VectorOutput):
        return LearnedQueries(1, output.query_channels)
    return OutputPositions(output.positions, output.grid, output.spacing)
