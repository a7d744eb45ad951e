"""The Perceiver IO decoder: output queries read the latents (IO, section 3.2)."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from perceiver_model.attention.cross_attend import CrossAttend
from perceiver_model.attention.multi_head import linear
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import DecoderConfig


class PerceiverDecoder(nn.Module):
    """One cross-attend from output queries to the latents, followed by a linear layer.

    Args:
        config: The configuration of the cross-attend.
        query_channels: The number of channels of the output queries.
        latent_dim: The number of channels of the latents.
        output_channels: The number of channels of the result. None means no linear layer; the
            result then has `query_channels`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        query_channels: int,
        latent_dim: int,
        output_channels: int | None,
    ) -> None:
        super().__init__()
        self.cross_attend = CrossAttend(
            query_channels=query_channels,
            input_channels=latent_dim,
            num_heads=config.num_heads,
            qk_channels=config.qk_channels,
            value_channels=config.value_channels,
            widening=config.widening,
            query_residual=config.query_residual,
            gelu=config.gelu,
            dropout=config.dropout,
        )
        self.output = (
            nn.Identity() if output_channels is None else linear(query_channels, output_channels)
        )

    def forward(
        self, queries: torch.Tensor, latents: torch.Tensor, *, chunk_size: int | None = None
    ) -> torch.Tensor:
        """Return one result per query, `[batch, queries, output_channels]`.

        Args:
            queries: The output queries `[batch, queries, query_channels]`. The batch is 1 if all
                samples share them.
            latents: The latents `[batch, num_latents, latent_dim]`.
            chunk_size: The number of queries to decode at a time, or None for all. Queries do not
                see each other, so the result is the same. Only the size of the result then limits
                the number of queries.
        """
        parts = queries.split(chunk_size or queries.shape[1], dim=1)
        return torch.cat(list(self.decode_parts(parts, latents)), dim=1)

    def decode_parts(
        self, parts: Iterable[torch.Tensor], latents: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """Yield the result of each part of the queries, in order.

        Args:
            parts: Some of the queries at a time, in the form that `forward` takes. A generator
                never needs to hold all queries.
            latents: The latents `[batch, num_latents, latent_dim]`.
        """
        inputs = InputArray(latents)
        memory = None
        for part in parts:
            decoded, memory = self.cross_attend(part, inputs, memory)
            yield self.output(decoded)
