"""Cross-attends and self-attends: pre-norm attention and MLP, each with a residual connection.

x = x + attention(LayerNorm(x), LayerNorm(inputs)); x = x + MLP(LayerNorm(x))
(paper, section 3.1 and appendix E; biases, the tanh GELU and the initial weights are those of
DeepMind's released code).
"""

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.config import EncoderConfig


def linear(in_features: int, out_features: int) -> nn.Linear:
    """Linear layer initialised as DeepMind's: truncated normal of variance 1 / fan-in, bias 0."""
    layer = nn.Linear(in_features, out_features)
    # Cutting a normal at two standard deviations leaves this fraction of its standard deviation.
    std = in_features**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
    return layer


def fused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_mask: torch.Tensor | None
) -> torch.Tensor:
    """Scaled dot-product attention; samples without any attended key give zeros.

    query `[batch, heads, queries, width]`, key and value `[batch, heads, keys, width]`, of one
    dtype; key_mask bool `[batch, keys]`, True where a key may be attended, or None for everywhere
    (which lets torch choose kernels that take no mask). Returns the query's shape and dtype.
    """
    width = query.shape[-1]
    # Fused GPU kernels refuse widths like the paper's 261; zeros change neither scores nor sums.
    padding = (0, -width % 8)
    query, key, value = (F.pad(tensor, padding) for tensor in (query, key, value))
    if key_mask is None:
        attended = F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)
        return attended[..., :width]
    # A softmax over no keys is 0/0, so such samples attend everything and are then zeroed.
    any_key = key_mask.any(dim=-1, keepdim=True)
    attend = (key_mask | ~any_key)[:, None, None, :]
    attended = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attend, scale=width**-0.5
    )
    return attended[..., :width].masked_fill(~any_key[:, :, None, None], 0.0)


class MultiHeadAttention(nn.Module):
    """Projects to queries, keys and values, attends, and projects back to the query's channels."""

    def __init__(
        self, *, query_channels: int, key_channels: int, attention_channels: int, num_heads: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = linear(query_channels, attention_channels)
        self.key = linear(key_channels, attention_channels)
        self.value = linear(key_channels, attention_channels)
        self.output = linear(attention_channels, query_channels)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, key_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attends from `[batch, queries, query_channels]` to `[batch, keys, key_channels]`.

        key_mask: bool `[batch, keys]`, True where a key may be attended; None for everywhere.
        """
        attended = fused_attention(
            self._split_heads(self.query(queries)),
            self._split_heads(self.key(keys)),
            self._split_heads(self.value(keys)),
            key_mask,
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    def _split_heads(self, tensor: torch.Tensor) -> torch.Tensor:
        """`[batch, tokens, channels]` to `[batch, heads, tokens, channels / heads]`."""
        return tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Linear to `widening` times the channels, GELU, linear back."""

    def __init__(self, *, channels: int, widening: int) -> None:
        super().__init__()
        self.expand = linear(channels, widening * channels)
        self.activation = nn.GELU(approximate="tanh")
        self.contract = linear(widening * channels, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[batch, tokens, channels]` to the same shape."""
        return self.contract(self.activation(self.expand(tokens)))


class CrossAttend(nn.Module):
    """The latents read the input: attention to its tokens, then an MLP on the latents."""

    def __init__(self, config: EncoderConfig, *, input_channels: int) -> None:
        super().__init__()
        self.latent_norm = nn.LayerNorm(config.latent_dim)
        self.input_norm = nn.LayerNorm(input_channels)
        self.attention = MultiHeadAttention(
            query_channels=config.latent_dim,
            key_channels=input_channels,
            attention_channels=config.cross_channels or input_channels,
            num_heads=config.num_cross_heads,
        )
        self.mlp_norm = nn.LayerNorm(config.latent_dim)
        self.mlp = MLP(channels=config.latent_dim, widening=config.cross_widening)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, latents: torch.Tensor, inputs: torch.Tensor, input_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """New latents `[batch, num_latents, latent_dim]`, having read the input.

        inputs `[batch, tokens, input_channels]`; input_mask bool `[batch, tokens]`, True where a
        token may be attended, or None for everywhere.
        """
        attended = self.attention(self.latent_norm(latents), self.input_norm(inputs), input_mask)
        latents = latents + self.dropout(attended)
        return latents + self.dropout(self.mlp(self.mlp_norm(latents)))


class SelfAttend(nn.Module):
    """The latents attend to each other, then pass an MLP."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.latent_dim)
        self.attention = MultiHeadAttention(
            query_channels=config.latent_dim,
            key_channels=config.latent_dim,
            attention_channels=config.latent_dim,
            num_heads=config.num_self_heads,
        )
        self.mlp_norm = nn.LayerNorm(config.latent_dim)
        self.mlp = MLP(channels=config.latent_dim, widening=config.self_widening)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """`[batch, num_latents, latent_dim]` to the same shape."""
        normed = self.attention_norm(latents)
        latents = latents + self.dropout(self.attention(normed, normed))
        return latents + self.dropout(self.mlp(self.mlp_norm(latents)))
