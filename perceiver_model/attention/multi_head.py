"""Attention, the MLP and the self-attend of the latents: pre-norm, each with a residual connection.

x = x + attention(LayerNorm(x)); x = x + MLP(LayerNorm(x))

See the paper, section 3.1 and appendix E. The biases, the tanh GELU and the initial weights are
those of DeepMind's released code.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.attention.residual import LayerNorm, ResidualStream

AttentionPath = Literal["auto", "reference", "fused", "factored", "separable"]
"""How attention is computed. Every path is the same function of the same weights.

- "reference" uses the plain formulas, with `[x | p]`, K, V and the attention weights as arrays.
- "fused" uses torch's fused kernels and no array of weights.
- "factored" projects x and p separately in cross-attends to a grid, and never builds `[x | p]`.
- "separable" builds neither K nor V in cross-attends to a grid of two or more axes.
- "auto" is the cheapest path that applies.

If a path does not apply to an attend, the attend uses the one before it in this list.
"""
ATTENTION_PATHS: tuple[AttentionPath, ...] = (
    "auto", "reference", "fused", "factored", "separable",
)  # fmt: skip


class Attend(ResidualStream):
    """An attention with its MLP.

    Attributes:
        attention_path: How the attention is computed.
        reads_latents: Whether it reads latents alone, so that its products may be in fp8
            (`perceiver_model.attention.fp8`).
    """

    attention_path: AttentionPath = "auto"
    reads_latents: bool = False


def set_attention_path(module: nn.Module, path: AttentionPath) -> None:
    """Set the attention path of every attend in `module`.

    Raises:
        ValueError: If the path is unknown.
    """
    if path not in ATTENTION_PATHS:
        raise ValueError(f"attention path {path!r}: must be one of {', '.join(ATTENTION_PATHS)}")
    for submodule in module.modules():
        if isinstance(submodule, Attend):
            submodule.attention_path = path


def linear(in_features: int, out_features: int) -> nn.Linear:
    """Build a linear layer with DeepMind's initial weights.

    They are drawn from a truncated normal distribution with variance 1 / fan-in. The bias is 0.

    Args:
        in_features: The number of input channels.
        out_features: The number of output channels.
    """
    layer = nn.Linear(in_features, out_features)
    # A normal distribution cut at two standard deviations keeps this fraction of its own.
    std = in_features**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
    return layer


def split_heads(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reshape `[batch, tokens, channels]` to `[batch, heads, tokens, channels / heads]`."""
    return tensor.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(tensor: torch.Tensor) -> torch.Tensor:
    """Reshape `[batch, heads, tokens, width]` to `[batch, tokens, heads * width]`."""
    return tensor.transpose(1, 2).flatten(2)


def attention_weights(
    query: torch.Tensor, key: torch.Tensor, key_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return softmax(Q Kᵀ / √width), `[batch, heads, queries, keys]`.

    The weights are zero where a key may not be attended.

    Args:
        query: The queries `[batch, heads, queries, width]`.
        key: The keys `[batch, heads, keys, width]`.
        key_mask: The keys that may be attended, bool `[batch, keys]` or `[batch, queries, keys]`,
            or None for all.
    """
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if key_mask is None:
        return scores.softmax(dim=-1)
    attend = key_mask[:, None, None, :] if key_mask.ndim == 2 else key_mask[:, None]
    weights = scores.masked_fill(~attend, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~attend, 0.0)


def reference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return softmax(Q Kᵀ / √width) V by the plain formula.

    The arguments are those of `fused_attention`.
    """
    return attention_weights(query, key, key_mask) @ value


def fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the scaled dot-product attention, `[batch, heads, queries, value width]`.

    Queries without any key to attend return zeros. All tensors have one dtype.

    Args:
        query: The queries `[batch, heads, queries, width]`.
        key: The keys `[batch, heads, keys, width]`.
        value: The values `[batch, heads, keys, value width]`.
        key_mask: The keys that may be attended, bool `[batch, keys]` or `[batch, queries, keys]`.
            None means all; torch can then choose kernels that take no mask.
    """
    width, value_width = query.shape[-1], value.shape[-1]
    # Fused GPU kernels refuse widths such as the paper's 261. Padding with zeros is safe.
    if width % 8:
        query, key = (F.pad(tensor, (0, -width % 8)) for tensor in (query, key))
    if value_width % 8:
        value = F.pad(value, (0, -value_width % 8))
    if key_mask is None:
        attended = F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)
        return attended[..., :value_width]
    # A softmax over no keys is 0/0. Such queries attend to all keys and are set to zero later.
    any_key = key_mask.any(dim=-1, keepdim=True)
    attend = key_mask | ~any_key
    if key_mask.ndim == 2:
        attend, any_key = attend.unsqueeze(1), any_key.unsqueeze(1)
    attended = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attend.unsqueeze(1), scale=width**-0.5
    )
    return attended[..., :value_width].masked_fill(~any_key.unsqueeze(1), 0.0)


class MLP(nn.Module):
    """A linear layer to `widening` times the channels, GELU, and a linear layer back."""

    def __init__(
        self, *, channels: int, widening: int, gelu: Literal["tanh", "erf"] = "tanh"
    ) -> None:
        super().__init__()
        self.expand = linear(channels, widening * channels)
        self.activation: nn.Module = nn.GELU(approximate="tanh" if gelu == "tanh" else "none")
        self.contract = linear(widening * channels, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Apply the MLP to `[batch, tokens, channels]`; the shape stays the same."""
        return self.contract(self.activation(self.expand(tokens)))


class SelfAttend(Attend):
    """The latents attend to each other and then pass through an MLP.

    Args:
        channels: The number of channels of the latents.
        num_heads: The number of attention heads.
        qk_channels: The width of queries and keys over all heads. None means `channels`.
        value_channels: The width of values over all heads. None means `qk_channels`.
        widening: The hidden width of the MLP, in multiples of `channels`.
        gelu: The GELU of the MLP, with its tanh approximation or exact.
        dropout: The probability of dropout after the attention and the MLP.
    """

    reads_latents = True

    def __init__(
        self,
        *,
        channels: int,
        num_heads: int,
        qk_channels: int | None = None,
        value_channels: int | None = None,
        widening: int = 1,
        gelu: Literal["tanh", "erf"] = "tanh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        qk_channels = qk_channels or channels
        value_channels = value_channels or qk_channels
        self.num_heads = num_heads
        self.widths = (qk_channels, qk_channels, value_channels)
        self.attention_norm = LayerNorm(channels)
        self.query_key_value = linear(channels, sum(self.widths))
        self.output = linear(value_channels, channels)
        self.mlp_norm = LayerNorm(channels)
        self.mlp = MLP(channels=channels, widening=widening, gelu=gelu)
        self.dropout = nn.Dropout(dropout)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return new latents of the same shape, `[batch, num_latents, channels]`."""
        latents = self.stream(latents)
        projected = self.query_key_value(self.attention_norm(latents))
        parts = projected.split(self.widths, dim=-1)
        query, key, value = (split_heads(part, self.num_heads) for part in parts)
        attention = reference_attention if self.attention_path == "reference" else fused_attention
        attended = merge_heads(attention(query, key, value))
        latents = latents + self.dropout(self.output(attended))
        return latents + self.dropout(self.mlp(self.mlp_norm(latents)))
