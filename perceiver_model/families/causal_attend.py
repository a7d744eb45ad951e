"""Perceiver AR's attends: causal, with rotary positions and a cache of keys and values.

Queries and keys are columns of one sequence and end at the same column. With q queries and k keys,
query i therefore attends to the keys 0 to i + k - q (arXiv 2202.07765, appendix C).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.attention.multi_head import (
    MLP,
    Attend,
    attention_weights,
    fused_attention,
    linear,
    merge_heads,
    reference_attention,
    split_heads,
)
from perceiver_model.attention.residual import LayerNorm
from perceiver_model.attention.rotary import Rotation, rotate
from perceiver_model.families.autoregressive_config import ARConfig


class Tokens(NamedTuple):
    """Embedded tokens.

    Attributes:
        content: The content `[batch, tokens, channels]`.
        rotation: The rotation of each token, or None without rotary positions.
    """

    content: torch.Tensor
    rotation: Rotation | None

    def last(self, num_tokens: int) -> "Tokens":
        """Return only the last tokens."""
        rotation = None if self.rotation is None else self.rotation.last(num_tokens)
        return Tokens(self.content[:, -num_tokens:], rotation)


class KeyValueCache:
    """The keys and values of all columns so far, in buffers that are allocated once.

    Args:
        capacity: The largest number of columns.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values `[batch, heads, new, width]`, and return all so far as views."""
        if self._buffers is None:
            batch, heads, _, width = keys.shape
            shape = (batch, heads, self.capacity, width)
            self._buffers = keys.new_empty(shape), values.new_empty(shape)
        start, self.length = self.length, self.length + keys.shape[2]
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, start : self.length] = new
        all_keys, all_values = (buffer[:, :, : self.length] for buffer in self._buffers)
        return all_keys, all_values

    def clear(self) -> None:
        """Drop all columns, but keep the buffers."""
        self.length = 0


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None = None,
    *,
    reference: bool = False,
) -> torch.Tensor:
    """Let the last columns attend to all columns up to their own.

    Queries without any key to attend return zeros.

    Args:
        query: The queries `[batch, heads, queries, width]`.
        key: The keys `[batch, heads, keys, width]`, at least as many as queries.
        value: The values `[batch, heads, keys, width]`.
        key_mask: The keys that may be attended, bool `[batch, keys]`, or None for all.
        reference: Whether to use the plain formula.

    Returns:
        The weighted values `[batch, heads, queries, width]`.
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    if key_mask is None and num_queries == num_keys and not reference:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    # `is_causal` aligns the first query with the first key. `causal_lower_right` aligns the last
    # ones, but breaks the graphs of torch.compile. So a mask is built.
    attend = _causal_mask(num_queries, num_keys, key_mask, query.device)
    if attend is None and not reference:
        return F.scaled_dot_product_attention(query, key, value)
    return (reference_attention if reference else fused_attention)(query, key, value, attend)


def _causal_mask(
    num_queries: int, num_keys: int, key_mask: torch.Tensor | None, device: torch.device
) -> torch.Tensor | None:
    """Return the allowed keys, bool `[batch or 1, queries or 1, keys]`, or None if all are."""
    attend = None if key_mask is None else key_mask.unsqueeze(1)
    if num_queries > 1:
        causal = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
        causal = causal.tril(num_keys - num_queries).unsqueeze(0)
        attend = causal if attend is None else attend & causal
    return attend


class SquaredReLU(nn.Module):
    """The activation max(x, 0)² (So et al., arXiv 2109.08668)."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the activation to a tensor of any shape."""
        return F.relu(hidden).square()


class CausalAttend(Attend):
    """The common part of both attends: attention, residual, MLP, residual."""

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        channels = config.channels
        self.num_heads = config.num_heads
        self.output = linear(channels, channels)
        self.mlp_norm = LayerNorm(channels)
        gelu: Literal["tanh", "erf"] = "erf" if config.activation == "gelu_erf" else "tanh"
        self.mlp = MLP(channels=channels, widening=config.widening, gelu=gelu)
        if config.activation == "squared_relu":
            self.mlp.activation = SquaredReLU()
        self.dropout = nn.Dropout(config.dropout)

    def _attend(
        self,
        latents: torch.Tensor,
        projections: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        rotations: tuple[Rotation | None, Rotation | None],
        mask: torch.Tensor | None,
        cache: KeyValueCache | None,
    ) -> torch.Tensor:
        """Return the latents after the attention and the MLP.

        Args:
            latents: The latents `[batch, queries, channels]`.
            projections: The queries, keys and values, before they are split into heads.
            rotations: The rotations of the queries and of the keys.
            mask: bool `[batch, columns]`. Its last columns belong to all keys, including those in
                the cache.
            cache: The cache of keys and values, or None.
        """
        query, key, value = (split_heads(part, self.num_heads) for part in projections)
        query, key = rotate(query, rotations[0]), rotate(key, rotations[1])
        if cache is not None:
            key, value = cache.extend(key, value)
        key_mask = None if mask is None else mask[:, -key.shape[2] :]
        reference = self.attention_path == "reference"
        attended = causal_attention(query, key, value, key_mask, reference=reference)
        latents = latents + self.dropout(self.output(merge_heads(attended)))
        return latents + self.dropout(self.mlp(self.mlp_norm(latents)))


class CausalCrossAttend(CausalAttend):
    """The last tokens attend to all tokens up to their own, and become the latents."""

    def __init__(self, config: ARConfig) -> None:
        super().__init__(config)
        channels = config.channels
        self.query_norm = LayerNorm(channels)
        self.input_norm = LayerNorm(channels)
        self.query = linear(channels, channels)
        self.key_value = linear(channels, 2 * channels)

    def forward(
        self,
        queries: Tokens,
        inputs: Tokens,
        mask: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        """Return the latents `[batch, queries, channels]`.

        Args:
            queries: The last tokens.
            inputs: The tokens that are not in the cache yet, or all tokens without a cache.
            mask: The tokens of the whole context that may be attended, bool `[batch, columns]`, or
                None for all.
            cache: The cache of keys and values, or None.
        """
        latents = self.stream(queries.content)
        query = self.query(self.query_norm(latents))
        key_value = self.key_value(self.input_norm(self.stream(inputs.content)))
        key, value = key_value.chunk(2, dim=-1)
        rotations = queries.rotation, inputs.rotation
        return self._attend(latents, (query, key, value), rotations, mask, cache)

    def attention_map(
        self, queries: Tokens, inputs: Tokens, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the attention weights `[batch, heads, queries, tokens]`, by the plain formula.

        The arguments are those of `forward` without a cache.
        """
        query = self.query(self.query_norm(queries.content))
        key, _ = self.key_value(self.input_norm(inputs.content)).chunk(2, dim=-1)
        query, key = (split_heads(part, self.num_heads) for part in (query, key))
        query, key = rotate(query, queries.rotation), rotate(key, inputs.rotation)
        attend = _causal_mask(query.shape[2], key.shape[2], mask, query.device)
        return attention_weights(query, key, attend)


class CausalSelfAttend(CausalAttend):
    """The latents attend to the latents up to their own position."""

    reads_latents = True

    def __init__(self, config: ARConfig) -> None:
        super().__init__(config)
        self.attention_norm = LayerNorm(config.channels)
        self.query_key_value = linear(config.channels, 3 * config.channels)

    def forward(
        self,
        latents: torch.Tensor,
        rotation: Rotation | None,
        mask: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        """Return new latents of the same shape, `[batch, latents, channels]`.

        Args:
            latents: The latents that are not in the cache yet.
            rotation: Their rotation, or None without rotary positions.
            mask: The mask of the whole context, as in `CausalCrossAttend.forward`.
            cache: The cache of keys and values, or None.
        """
        latents = self.stream(latents)
        projected = self.query_key_value(self.attention_norm(latents))
        query, key, value = projected.chunk(3, dim=-1)
        return self._attend(latents, (query, key, value), (rotation, rotation), mask, cache)
