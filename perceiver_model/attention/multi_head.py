"""Attention, MLP and the latents' self-attend: pre-norm, each with a residual connection.

x = x + attention(LayerNorm(x)); x = x + MLP(LayerNorm(x))
(paper, section 3.1 and appendix E; biases, the tanh GELU and the initial weights are those of
DeepMind's released code).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

AttentionPath = Literal["auto", "reference", "fused", "factored", "separable"]
"""How attention is computed; every path is the same function of the same weights.

"reference": the plain formulas, with `[x | p]`, K, V and the attention weights as arrays.
"fused": torch's fused kernels instead of the weights' array.
"factored": cross-attends to a grid project x and p apart and never build `[x | p]`.
"separable": cross-attends to a grid of two or more axes build neither K nor V.
"auto": the cheapest that applies. A path that doesn't apply to an attend falls back to the one
    before it in this list.
"""
ATTENTION_PATHS: tuple[AttentionPath, ...] = (
    "auto", "reference", "fused", "factored", "separable",
)  # fmt: skip


class Attend(nn.Module):
    """An attention with its MLP; `attention_path` is how it is computed."""

    attention_path: AttentionPath = "auto"


def set_attention_path(module: nn.Module, path: AttentionPath) -> None:
    """Choose how every attend in `module` is computed; raises ValueError for an unknown path."""
    if path not in ATTENTION_PATHS:
        raise ValueError(f"attention path {path!r}: must be one of {', '.join(ATTENTION_PATHS)}")
    for submodule in module.modules():
        if isinstance(submodule, Attend):
            submodule.attention_path = path


def linear(in_features: int, out_features: int) -> nn.Linear:
    """Linear layer initialised as DeepMind's: truncated normal of variance 1 / fan-in, bias 0."""
    layer = nn.Linear(in_features, out_features)
    # Cutting a normal at two standard deviations leaves this fraction of its standard deviation.
    std = in_features**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
    return layer


def split_heads(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """`[batch, tokens, channels]` to `[batch, heads, tokens, channels / heads]`."""
    return tensor.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(tensor: torch.Tensor) -> torch.Tensor:
    """`[batch, heads, tokens, width]` to `[batch, tokens, heads * width]`."""
    return tensor.transpose(1, 2).flatten(2)


def attention_weights(
    query: torch.Tensor, key: torch.Tensor, key_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """softmax(Q Kᵀ / √width) `[batch, heads, queries, keys]`, zeros where no key may be attended.

    query `[batch, heads, queries, width]`, key `[batch, heads, keys, width]`; key_mask bool
    `[batch, keys]` or `[batch, queries, keys]`, True where a key may be attended.
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
    """softmax(Q Kᵀ / √width) V, as the formula says; arguments as of `fused_attention`."""
    return attention_weights(query, key, key_mask) @ value


def fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention; queries without any key to attend give zeros.

    query `[batch, heads, queries, width]`, key `[batch, heads, keys, width]` and value `[batch,
    heads, keys, value width]`, of one dtype; key_mask bool `[batch, keys]` or `[batch, queries,
    keys]`, True where a key may be attended, or None for everywhere (which lets torch choose
    kernels that take no mask). Returns `[batch, heads, queries, value width]`.
    """
    width, value_width = query.shape[-1], value.shape[-1]
    # Fused GPU kernels refuse widths like the paper's 261; zeros change neither scores nor sums.
    if width % 8:
        query, key = (F.pad(tensor, (0, -width % 8)) for tensor in (query, key))
    if value_width % 8:
        value = F.pad(value, (0, -value_width % 8))
    if key_mask is None:
        attended = F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)
        return attended[..., :value_width]
    # A softmax over no keys is 0/0, so such queries attend everything and are then zeroed.
    any_key = key_mask.any(dim=-1, keepdim=True)
    attend = key_mask | ~any_key
    if key_mask.ndim == 2:
        attend, any_key = attend.unsqueeze(1), any_key.unsqueeze(1)
    attended = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attend.unsqueeze(1), scale=width**-0.5
    )
    return attended[..., :value_width].masked_fill(~any_key.unsqueeze(1), 0.0)


class MLP(nn.Module):
    """Linear to `widening` times the channels, GELU, linear back."""

    def __init__(
        self, *, channels: int, widening: int, gelu: Literal["tanh", "erf"] = "tanh"
    ) -> None:
        super().__init__()
        self.expand = linear(channels, widening * channels)
        self.activation: nn.Module = nn.GELU(approximate="tanh" if gelu == "tanh" else "none")
        self.contract = linear(widening * channels, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[batch, tokens, channels]` to the same shape."""
        return self.contract(self.activation(self.expand(tokens)))


class SelfAttend(Attend):
    """The latents attend to each other, then pass an MLP.

    Args:
        qk_channels: width of queries and keys over all heads; None is `channels`.
        value_channels: width of values over all heads; None is `qk_channels`.
    """

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
        self.attention_norm = nn.LayerNorm(channels)
        self.query_key_value = linear(channels, sum(self.widths))
        self.output = linear(value_channels, channels)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = MLP(channels=channels, widening=widening, gelu=gelu)
        self.dropout = nn.Dropout(dropout)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """`[batch, num_latents, channels]` to the same shape."""
        projected = self.query_key_value(self.attention_norm(latents))
        parts = projected.split(self.widths, dim=-1)
        query, key, value = (split_heads(part, self.num_heads) for part in parts)
        attention = reference_attention if self.attention_path == "reference" else fused_attention
        attended = merge_heads(attention(query, key, value))
        latents = latents + self.dropout(self.output(attended))
        return latents + self.dropout(self.mlp(self.mlp_norm(latents)))
