"""The cross-attend: queries read an input array, by whichever path is cheapest.

x = x + attention(LayerNorm(x), LayerNorm(inputs)); x = x + MLP(LayerNorm(x))
(paper, section 3.1; IO, section 3.1 and equations 1 to 6 of its appendix).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.attention.multi_head import (
    MLP,
    Attend,
    AttentionPath,
    attention_weights,
    fused_attention,
    linear,
    merge_heads,
    reference_attention,
    split_heads,
)
from perceiver_model.attention.separable import separable_attention
from perceiver_model.attention.tokens import InputArray


class KeysValues(NamedTuple):
    """An input array as keys and values, `[batch, heads, tokens, width]`, and its mask."""

    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor | None


class NormedGrid(NamedTuple):
    """A grid of tokens and what layer normalisation divides each of them by.

    Attributes:
        content: `[batch, tokens, content_channels]`, float32, or float64 if the input array is.
        scale: reciprocal standard deviations `[batch, tokens]`, of the same dtype.
    """

    content: torch.Tensor
    scale: torch.Tensor
    axis_tables: tuple[torch.Tensor, ...]
    mask: torch.Tensor | None


# What the separable path's elementwise work on a query and a token costs, in multiply-adds of
# matrix products: measured on CPUs at the paper's ImageNet shapes.
SEPARABLE_OVERHEAD = 120

Memory = KeysValues | NormedGrid
"""What a cross-attend has made of an input array; the same for every query."""


class CrossAttend(Attend):
    """Queries read an input array, then pass an MLP.

    Args:
        query_channels: channels of the queries and of the result.
        input_channels: channels of the input array.
        qk_channels: width of queries and keys over all heads; None is `input_channels`, DeepMind's
            choice.
        value_channels: width of values over all heads; None is `qk_channels`.
        query_residual: whether the queries are added to what they read (IO leaves it out where
            queries are positions and results are pixels).
    """

    def __init__(
        self,
        *,
        query_channels: int,
        input_channels: int,
        num_heads: int,
        qk_channels: int | None = None,
        value_channels: int | None = None,
        widening: int = 1,
        query_residual: bool = True,
        gelu: Literal["tanh", "erf"] = "tanh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        qk_channels = qk_channels or input_channels
        value_channels = value_channels or qk_channels
        self.num_heads = num_heads
        self.query_residual = query_residual
        self.query_norm = nn.LayerNorm(query_channels)
        self.input_norm = nn.LayerNorm(input_channels)
        self.query = linear(query_channels, qk_channels)
        self.key = linear(input_channels, qk_channels)
        self.value = linear(input_channels, value_channels)
        self.output = linear(value_channels, query_channels)
        self.mlp_norm = nn.LayerNorm(query_channels)
        self.mlp = MLP(channels=query_channels, widening=widening, gelu=gelu)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: torch.Tensor, inputs: InputArray, memory: Memory | None = None
    ) -> tuple[torch.Tensor, Memory]:
        """Queries `[batch, queries, query_channels]` that have read the inputs, and the memory.

        Args:
            queries: `[batch, queries, query_channels]`, or with a batch of 1 if they are the same
                for all samples; then what doesn't depend on the sample is computed once.
            inputs: tokens of `input_channels` channels.
            memory: what an earlier call with the same inputs returned, so that cross-attends that
                share weights project the inputs once.
        """
        projected = split_heads(self.query(self.query_norm(queries)), self.num_heads)
        if memory is None:
            memory = self._memorise(inputs, queries.shape[1])
        if isinstance(memory, NormedGrid):
            attended = self._attend_separably(projected, memory)
        else:
            projected = projected.expand(memory.keys.shape[0], -1, -1, -1)
            reference = self.attention_path == "reference"
            attention = reference_attention if reference else fused_attention
            attended = attention(projected, memory.keys, memory.values, memory.mask)
        result = self.dropout(self.output(merge_heads(attended)))
        if self.query_residual:
            result = queries + result
        return result + self.dropout(self.mlp(self.mlp_norm(result))), memory

    def attention_map(self, queries: torch.Tensor, inputs: InputArray) -> torch.Tensor:
        """The attention weights `[batch, heads, queries, tokens]`, by the plain formula."""
        projected = split_heads(self.query(self.query_norm(queries)), self.num_heads)
        keys = split_heads(self.key(self.input_norm(inputs.dense())), self.num_heads)
        return attention_weights(projected, keys, inputs.mask)

    def _memorise(self, inputs: InputArray, num_queries: int) -> Memory:
        path = self._path(inputs, num_queries)
        if path == "separable":
            mean_and_scale = token_statistics(inputs, self.input_norm.eps)
            content = inputs.content.to(mean_and_scale[1].dtype)
            return NormedGrid(content, mean_and_scale[1], inputs.axis_tables, inputs.mask)
        if path == "factored":
            statistics = token_statistics(inputs, self.input_norm.eps)
            projections = [
                self._project_apart(layer, inputs, *statistics) for layer in (self.key, self.value)
            ]
        else:
            normed = self.input_norm(inputs.dense())
            projections = [self.key(normed), self.value(normed)]
        keys, values = (split_heads(tensor, self.num_heads) for tensor in projections)
        return KeysValues(keys, values, inputs.mask)

    def _path(self, inputs: InputArray, num_queries: int) -> AttentionPath:
        """The path that is asked for, or the nearest one that applies to these inputs."""
        path = self.attention_path
        if path in ("reference", "fused") or not inputs.axis_tables:
            return "reference" if path == "reference" else "fused"
        if path == "factored" or len(inputs.axis_tables) < 2:
            return "factored"
        if path == "separable" or self._separable_is_cheaper(inputs, num_queries):
            return "separable"
        return "factored"

    def _separable_is_cheaper(self, inputs: InputArray, num_queries: int) -> bool:
        """Whether it takes fewer multiply-adds for each head, query and token."""
        separable = 2 * inputs.content.shape[-1] + SEPARABLE_OVERHEAD
        widths = self.key.out_features + self.value.out_features
        projections = self.key.in_features * widths / num_queries
        return separable * self.num_heads <= widths + projections

    def _project_apart(
        self, layer: nn.Linear, inputs: InputArray, mean: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """layer(LayerNorm([x | p])) as r (x Wxᵀ + p Wpᵀ - μ W 1) + (W_layer β + b), W = W_layer g.

        μ and r are each token's mean and reciprocal standard deviation; p Wpᵀ is computed once
        for all samples. `[batch, tokens, out_features]`.
        """
        weight = layer.weight * self.input_norm.weight
        shift = F.linear(self.input_norm.bias, layer.weight, layer.bias)
        content_channels = inputs.content.shape[-1]
        content = F.linear(inputs.content.to(weight.dtype), weight[:, :content_channels])
        tables = tuple(
            F.linear(table.to(weight.dtype), weight[:, content_channels:])
            for table in inputs.axis_tables
        )
        positions = inputs._replace(axis_tables=tables).positions()
        centred = content + positions - mean.unsqueeze(-1) * weight.sum(dim=-1)
        return (scale.unsqueeze(-1) * centred + shift).to(content.dtype)

    def _attend_separably(self, projected: torch.Tensor, memory: NormedGrid) -> torch.Tensor:
        """Attention `[batch, heads, queries, value width]` as `separable_attention` explains it."""
        dtype = memory.scale.dtype
        with torch.autocast(projected.device.type, enabled=False):
            # a = C (g ∘ W_kᵀ q) / √width, the query in the space of the normalised tokens
            key_weight = self.key.weight.to(dtype).unflatten(0, (self.num_heads, -1))
            in_inputs = projected.to(dtype) @ key_weight * self.input_norm.weight.to(dtype)
            in_inputs = _centred(in_inputs) * projected.shape[-1] ** -0.5
            # The keys' bias moves all scores of a query alike: its gradient is zero, but not None.
            in_inputs = in_inputs + 0.0 * self.key.bias.sum()
            content_width = memory.content.shape[-1]
            content_queries, position_queries = in_inputs.split(
                [content_width, in_inputs.shape[-1] - content_width], dim=-1
            )
            tables = [table.to(dtype) for table in memory.axis_tables]
            scores = [position_queries @ table.mT for table in tables]
            row_scores = scores[0]
            for axis_scores in scores[1:-1]:
                row_scores = (row_scores.unsqueeze(-1) + axis_scores.unsqueeze(-2)).flatten(-2)
            batch = memory.content.shape[0]
            content, row_sums, column_sums = separable_attention(
                content_queries.expand(batch, -1, -1, -1),
                row_scores.expand(batch, -1, -1, -1),
                scores[-1].expand(batch, -1, -1, -1),
                memory.content,
                memory.scale,
                memory.mask,
            )
            # Σ P u = C Σ P r [x | p]
            rows = row_sums.unflatten(-1, [table.shape[0] for table in tables[:-1]])
            positions = column_sums @ tables[-1]
            for axis, table in enumerate(tables[:-1]):
                others = [3 + other for other in range(len(tables) - 1) if other != axis]
                positions = positions + (rows.sum(dim=others) if others else rows) @ table
            attended = _centred(torch.cat([content, positions], dim=-1))
            attended = attended * self.input_norm.weight.to(dtype) + self.input_norm.bias.to(dtype)
            value_weight = self.value.weight.to(dtype).unflatten(0, (self.num_heads, -1))
            value_bias = self.value.bias.to(dtype).unflatten(0, (self.num_heads, 1, -1))
            values = attended @ value_weight.mT + value_bias
        if memory.mask is not None:
            values = values.masked_fill(~memory.mask.any(dim=-1)[:, None, None, None], 0.0)
        return values.to(projected.dtype)


def token_statistics(inputs: InputArray, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and reciprocal standard deviation of every token [x | p], each `[batch, tokens]`.

    Float32, or float64 if the content is: layer normalisation's, without building the tokens.
    """
    dtype = torch.float64 if inputs.content.dtype == torch.float64 else torch.float32
    content = inputs.content.to(dtype)
    tables = tuple(table.to(dtype) for table in inputs.axis_tables)
    num_content, num_positions = content.shape[-1], tables[0].shape[-1]
    num_channels = num_content + num_positions
    # Sums over a token's position channels are sums over the axes, too.
    position_sum = _on_grid([table.sum(dim=-1) for table in tables])
    position_mean = position_sum / num_positions
    position_squares = _on_grid([table.square().sum(dim=-1) for table in tables])
    position_deviation = position_squares - position_sum * position_mean
    mean = (content.sum(dim=-1) + position_sum) / num_channels
    squares = (
        (content - mean.unsqueeze(-1)).square().sum(dim=-1)
        + position_deviation
        + num_positions * (position_mean - mean).square()
    )
    return mean, (squares / num_channels + eps).rsqrt()


def _on_grid(axes: list[torch.Tensor]) -> torch.Tensor:
    """The sum of one number for each axis, for every token: `[tokens]`."""
    total = axes[0]
    for axis in axes[1:]:
        total = (total.unsqueeze(-1) + axis).flatten()
    return total


def _centred(tensor: torch.Tensor) -> torch.Tensor:
    return tensor - tensor.mean(dim=-1, keepdim=True)
