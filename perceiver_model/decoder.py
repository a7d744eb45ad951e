"""The Perceiver IO decoder: output queries read the latents (IO, section 3.2)."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from perceiver_model.attention.cross_attend import CrossAttend
from perceiver_model.attention.multi_head import linear
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import DecoderConfig


class PerceiverDecoder(nn.Module):
    """One cross-attend from output queries to the latents, then a linear layer.

    Args:
        query_channels: channels of the output queries.
        latent_dim: channels of the latents.
        output_channels: channels of the result; None leaves the linear layer out, so that they are
            `query_channels`.
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
        """One result for every query, `[batch, queries, output_channels]`.

        Args:
            queries: `[batch, queries, query_channels]`, or with a batch of 1 if all samples share
                them.
            latents: `[batch, num_latents, latent_dim]`.
            chunk_size: decode that many queries at a time. Queries do not see each other, so the
                result is the same, and only the result's size limits their number.
        """
        parts = queries.split(chunk_size or queries.shape[1], dim=1)
        return torch.cat(list(self.decode_parts(parts, latents)), dim=1)

    def decode_parts(
        self, parts: Iterable[torch.Tensor], latents: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """The results of each part of the queries, in turn.

        Args:
            parts: queries as of `forward`, some at a time; a generator need never hold all of them.
        """
        inputs = InputArray(latents)
        memory = None
        for part in parts:
            decoded, memory = self.cross_attend(part, inputs, memory)
            yield self.output(decoded)
