"""The cross-attend: queries read an input array, on the cheapest path.

x = x + attention(LayerNorm(x), LayerNorm(inputs)); x = x + MLP(LayerNorm(x))

See the paper, section 3.1, and Perceiver IO, section 3.1 and equations 1 to 6 of its appendix.
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
from perceiver_model.attention.residual import LayerNorm
from perceiver_model.attention.separable import separable_attention
from perceiver_model.attention.tokens import InputArray


class KeysValues(NamedTuple):
    """An input array as keys and values.

    Attributes:
        keys: The keys `[batch, heads, tokens, width]`.
        values: The values `[batch, heads, tokens, width]`.
        mask: The tokens that may be attended, bool `[batch, tokens]`, or None for all.
    """

    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor | None


class NormedGrid(NamedTuple):
    """A grid of tokens, and the factor by which layer normalisation scales each token.

    Attributes:
        content: The content `[batch, tokens, content_channels]`, float32, or float64 if the input
            array is float64.
        scale: The reciprocal standard deviations `[batch, tokens]`, in the same dtype.
        axis_tables: The position tables of the input array.
        mask: The tokens that may be attended, bool `[batch, tokens]`, or None for all.
    """

    content: torch.Tensor
    scale: torch.Tensor
    axis_tables: tuple[torch.Tensor, ...]
    mask: torch.Tensor | None


# The cost of the separable path's elementwise work on a query and a token, in multiply-adds of
# matrix products. It was measured on CPUs at the paper's ImageNet shapes.
SEPARABLE_OVERHEAD = 120

Memory = KeysValues | NormedGrid
"""What a cross-attend has computed from an input array. It is the same for every query."""


class CrossAttend(Attend):
    """Queries read an input array and then pass through an MLP.

    Args:
        query_channels: The number of channels of the queries and of the result.
        input_channels: The number of channels of the input array.
        num_heads: The number of attention heads.
        qk_channels: The width of queries and keys over all heads. None means `input_channels`,
            which is DeepMind's choice.
        value_channels: The width of values over all heads. None means `qk_channels`.
        widening: The hidden width of the MLP, in multiples of `query_channels`.
        query_residual: Whether the queries are added to the result of the attention. Perceiver IO
            does not add them if queries are positions and results are pixels.
        gelu: The GELU of the MLP, with its tanh approximation or exact.
        dropout: The probability of dropout after the attention and the MLP.
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
        self.query_norm = LayerNorm(query_channels)
        self.input_norm = LayerNorm(input_channels)
        self.query = linear(query_channels, qk_channels)
        self.key = linear(input_channels, qk_channels)
        self.value = linear(input_channels, value_channels)
        self.output = linear(value_channels, query_channels)
        self.mlp_norm = LayerNorm(query_channels)
        self.mlp = MLP(channels=query_channels, widening=widening, gelu=gelu)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: torch.Tensor, inputs: InputArray, memory: Memory | None = None
    ) -> tuple[torch.Tensor, Memory]:
        """Return the queries after reading the inputs, and the memory for the next call.

        Args:
            queries: The queries `[batch, queries, query_channels]`. The batch is 1 if all samples
                share them. The part that does not depend on the sample is then computed once.
            inputs: The tokens, with `input_channels` channels.
            memory: The memory that an earlier call with the same inputs returned. Cross-attends
                that share weights then project the inputs only once.

        Returns:
            The queries `[batch, queries, query_channels]`, and the memory.
        """
        queries = self.stream(queries)
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
        """Return the attention weights `[batch, heads, queries, tokens]`, by the plain formula.

        The arguments are those of `forward`.
        """
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
        """Return the requested path, or the nearest one that applies to these inputs."""
        path = self.attention_path
        if path in ("reference", "fused") or not inputs.axis_tables:
            return "reference" if path == "reference" else "fused"
        if path == "factored" or len(inputs.axis_tables) < 2:
            return "factored"
        if path == "separable" or self._separable_is_cheaper(inputs, num_queries):
            return "separable"
        return "factored"

    def _separable_is_cheaper(self, inputs: InputArray, num_queries: int) -> bool:
        """Return whether the separable path takes fewer multiply-adds per head, query and token."""
        separable = 2 * inputs.content.shape[-1] + SEPARABLE_OVERHEAD
        widths = self.key.out_features + self.value.out_features
        projections = self.key.in_features * widths / num_queries
        return separable * self.num_heads <= widths + projections

    def _project_apart(
        self, layer: nn.Linear, inputs: InputArray, mean: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """Project content and positions separately; return `[batch, tokens, out_features]`.

        With W = W_layer g, it computes layer(LayerNorm([x | p])) as r (x Wxᵀ + p Wpᵀ - μ W 1) +
        (W_layer β + b). μ and r are the mean and the reciprocal standard deviation of each token. p
        Wpᵀ is computed once for all samples.
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
        """Return the attention `[batch, heads, queries, value width]` by `separable_attention`."""
        dtype = memory.scale.dtype
        with torch.autocast(projected.device.type, enabled=False):
            # a = C (g ∘ W_kᵀ q) / √width is the query in the space of the normalised tokens.
            key_weight = self.key.weight.to(dtype).unflatten(0, (self.num_heads, -1))
            in_inputs = projected.to(dtype) @ key_weight * self.input_norm.weight.to(dtype)
            in_inputs = _centred(in_inputs) * projected.shape[-1] ** -0.5
            # The keys' bias shifts all scores of a query equally: its gradient is zero, not None.
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
    """Return the mean and the reciprocal standard deviation of every token [x | p].

    These are the statistics of layer normalisation, computed without building the tokens.

    Args:
        inputs: The input array, with axis tables.
        eps: The number added to the variance.

    Returns:
        Two tensors `[batch, tokens]`, float32, or float64 if the content is float64.
    """
    dtype = torch.float64 if inputs.content.dtype == torch.float64 else torch.float32
    content = inputs.content.to(dtype)
    tables = tuple(table.to(dtype) for table in inputs.axis_tables)
    num_content, num_positions = content.shape[-1], tables[0].shape[-1]
    num_channels = num_content + num_positions
    # A sum over a token's position channels is also a sum over the axes.
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
    """Return the sum of one number per axis for every token, `[tokens]`."""
    total = axes[0]
    for axis in axes[1:]:
        total = (total.unsqueeze(-1) + axis).flatten()
    return total


def _centred(tensor: torch.Tensor) -> torch.Tensor:
    return tensor - tensor.mean(dim=-1, keepdim=True)
