"""Perceiver AR: a causal cross-attend reads long contexts into causal latents.

See Hawthorne et al. 2022 (arXiv 2202.07765), appendix C. The last positions of the context are the
latents. Each latent predicts the token after it, from all tokens up to its own.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.attention.multi_head import linear
from perceiver_model.attention.residual import LayerNorm
from perceiver_model.attention.rotary import RotaryTable
from perceiver_model.families.autoregressive_config import ARConfig
from perceiver_model.families.causal_attend import (
    CausalCrossAttend,
    CausalSelfAttend,
    KeyValueCache,
    Tokens,
)

_INTEGERS = (torch.int64, torch.int32)
"""The dtypes of token ids that an embedding accepts."""


class LatentCache(NamedTuple):
    """The cached keys and values of a context.

    Attributes:
        cross_attend: The keys and values of all tokens, whichever tokens are latents.
        self_attends: The keys and values of the latents, one cache per self-attend. They change
            when other tokens become latents.
    """

    cross_attend: KeyValueCache
    self_attends: tuple[KeyValueCache, ...]


class PerceiverAR(nn.Module):
    """A model of sequences of tokens, such as bytes.

    Embeddings and latents have the same width, so there is no linear layer between them.
    """

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = _embedding(config.vocab_size, config.channels)
        self.rotary: RotaryTable | None = None
        self.position_embedding: nn.Embedding | None = None
        if config.positions == "rotary":
            self.rotary = RotaryTable(
                max_length=config.max_length,
                rotated_channels=config.rotated_channels,
                max_wavelength=config.max_wavelength or config.max_length,
            )
        else:
            self.position_embedding = _embedding(config.max_length, config.channels)
        self.cross_attend = CausalCrossAttend(config)
        self.self_attends = nn.ModuleList(
            CausalSelfAttend(config) for _ in range(config.num_self_attends)
        )
        self.output_norm = LayerNorm(config.channels)
        self.output: nn.Linear | None = None
        if not config.tied_logits:
            self.output = linear(config.channels, config.vocab_size)
            # As in the released code, all tokens are equally likely at first.
            nn.init.zeros_(self.output.weight)

    def forward(
        self,
        token_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        num_latents: int | None = None,
    ) -> torch.Tensor:
        """Return the logits `[batch, latents, vocab_size]`.

        Latent i predicts the token after column length - latents + i. The logits are float32, or
        float64 for a float64 model.

        Args:
            token_ids: The token ids, integers `[batch, length]`, with at most `max_length` columns.
            mask: bool `[batch, length]`, True for tokens and False for padding. None means no
                padding, which is faster. Positions count tokens and not padding, so the logits do
                not depend on the padding. Pad on the left: the latents are the last columns, so
                padding there wastes latents. The logits of padding have no meaning.
            num_latents: The number of latents, at most length. None means the configuration's. It
                may differ from the number in training.

        Raises:
            ValueError: If a shape or a dtype is wrong.
        """
        check_tokens(token_ids, mask, max_length=self.config.max_length)
        if num_latents is not None and num_latents < 1:
            raise ValueError(f"num_latents is {num_latents}; must be at least 1")
        num_latents = min(num_latents or self.config.num_latents, token_ids.shape[1])
        inputs = self.embed(token_ids, token_positions(token_ids, mask))
        return self.logits(self.latents(inputs.last(num_latents), inputs, mask))

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> Tokens:
        """Embed tokens.

        Args:
            token_ids: The token ids, integers `[batch, tokens]`.
            positions: The position of each token, int64 `[batch or 1, tokens]`.
        """
        content = self.token_embedding(token_ids)
        if self.position_embedding is not None:
            content = content + self.position_embedding(positions)
        return Tokens(content, None if self.rotary is None else self.rotary(positions))

    def latents(
        self,
        queries: Tokens,
        inputs: Tokens,
        mask: torch.Tensor | None = None,
        cache: LatentCache | None = None,
    ) -> torch.Tensor:
        """Return the latents `[batch, queries, channels]` of the last tokens.

        Args:
            queries: The last tokens, which follow the latents in the cache.
            inputs: The tokens that are not in the cache, or all tokens without a cache.
            mask: bool `[batch, length]` of the whole context, or None.
            cache: The cache to which the keys and values of `queries` and `inputs` are added. Use
                it without gradients.
        """
        cross_cache = None if cache is None else cache.cross_attend
        latents = self.cross_attend(queries, inputs, self._drop_context(inputs, mask), cross_cache)
        for index, self_attend in enumerate(self.self_attends):
            self_cache = None if cache is None else cache.self_attends[index]
            latents = self_attend(latents, queries.rotation, mask, self_cache)
        return latents

    def logits(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn latents `[batch, latents, channels]` into logits `[batch, latents, vocab_size]`."""
        normed = self.output_norm(latents)
        if self.output is None:
            logits = F.linear(normed, self.token_embedding.weight) * normed.shape[-1] ** -0.5
        else:
            logits = self.output(normed)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _drop_context(self, inputs: Tokens, mask: torch.Tensor | None) -> torch.Tensor | None:
        if not self.training or self.config.context_dropout == 0:
            return mask
        shape, device = inputs.content.shape[:2], inputs.content.device
        keep = torch.rand(shape, device=device) >= self.config.context_dropout
        return keep if mask is None else keep & mask


def next_token_loss(
    logits: torch.Tensor, token_ids: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean cross-entropy of the next tokens in nats, a scalar in the logits' dtype.

    The mean is over the tokens that follow a token. A batch without any has a loss of 0.

    Args:
        logits: The logits `[batch, latents, vocab_size]` of
            `model(token_ids[:, :-1], mask[:, :-1])`.
        token_ids: The token ids, integers `[batch, length]`: the context and one more token in the
            last column.
        mask: bool `[batch, length]`, True for tokens and False for padding. None means no padding.

    Raises:
        ValueError: If a shape or a dtype is wrong, or the token ids are too few for the logits.
    """
    check_tokens(token_ids, mask)
    num_latents = logits.shape[1]
    if token_ids.shape[1] <= num_latents:
        raise ValueError(
            f"token_ids of {token_ids.shape[1]} columns: expected more than the logits' "
            f"{num_latents} latents, whose next tokens they hold"
        )
    losses = F.cross_entropy(
        logits.flatten(0, 1), token_ids[:, -num_latents:].flatten().long(), reduction="none"
    )
    if mask is None:
        return losses.mean()
    counted = (mask[:, -num_latents:] & mask[:, -num_latents - 1 : -1]).flatten()
    return losses.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)


def token_positions(token_ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the position of each token in its row, int64 `[batch or 1, length]`.

    Padding does not count, and has the position of the last token before it, or 0.

    Args:
        token_ids: The token ids, integers `[batch, length]`.
        mask: bool `[batch, length]`, True for tokens and False for padding. None means no padding.
    """
    if mask is None:
        return torch.arange(token_ids.shape[1], device=token_ids.device).unsqueeze(0)
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def check_tokens(
    token_ids: torch.Tensor, mask: torch.Tensor | None, *, max_length: int | None = None
) -> None:
    """Check that token ids and their mask have the right shape and dtype.

    Args:
        token_ids: The token ids, integers `[batch, length]`.
        mask: bool `[batch, length]`, or None.
        max_length: The largest number of columns, or None for any.

    Raises:
        ValueError: If they do not.
    """
    if token_ids.ndim != 2 or token_ids.shape[1] == 0 or token_ids.dtype not in _INTEGERS:
        raise ValueError(
            f"token_ids of {token_ids.dtype} {list(token_ids.shape)}: expected integers "
            "[batch, length], length at least 1"
        )
    if max_length is not None and token_ids.shape[1] > max_length:
        raise ValueError(f"token_ids of {token_ids.shape[1]} columns: max_length is {max_length}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != token_ids.shape):
        raise ValueError(
            f"mask of {mask.dtype} {list(mask.shape)}: expected bool {list(token_ids.shape)}, "
            "as token_ids"
        )


def _embedding(num_vectors: int, channels: int) -> nn.Embedding:
    """Build an embedding, drawn as in the released code from a truncated normal with std 1."""
    embedding = nn.Embedding(num_vectors, channels)
    nn.init.trunc_normal_(embedding.weight, std=1.0, a=-2.0, b=2.0)
    return embedding
