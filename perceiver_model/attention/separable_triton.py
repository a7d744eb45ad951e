"""`separable_attention` on a GPU: it calls the Triton kernels.

The scores of all pairs of query and token stay in registers, so the time is that of the arithmetic.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton

from perceiver_model.attention.separable_triton_kernels import (
    maxima_kernel,
    sums_kernel,
    token_grads_kernel,
)
from perceiver_model.attention.separable_triton_tiles import FEW_CHANNELS

# More channels would not fit into the registers. A library's matrix products then pay off.
MAX_CHANNELS = 64
# Groups of rows make enough programs to fill a large GPU many times, so that few processors idle
# at the end. But each group has a start-up cost, and its partial sums take memory.
ENOUGH_PROGRAMS = 1 << 14
MIN_ROWS = 16
MAX_PARTIAL_SUMS = 1 << 26


def serves(content: torch.Tensor) -> bool:
    """Return whether the kernels support this content."""
    return content.dtype == torch.float32 and 1 <= content.shape[-1] <= MAX_CHANNELS


def attention(
    content_queries: torch.Tensor,
    row_scores: torch.Tensor,
    column_scores: torch.Tensor,
    content: torch.Tensor,
    scale: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the three sums and the log_sums of the operator, for float32 inputs."""
    inputs = _Inputs(content_queries, row_scores, column_scores, scale, mask)
    planes = inputs.planes(content * scale.unsqueeze(-1))
    groups = inputs.groups(width=1)
    partial_maxima = inputs.partial(groups)
    inputs.launch(
        maxima_kernel,
        inputs.query_blocks * groups,
        (partial_maxima, planes, *inputs.tables, *inputs.sizes, groups),
    )
    maxima = partial_maxima.amax(dim=2)
    # Where nothing is attended, every weight is then exp(-inf) = 0.
    maxima.masked_fill_(maxima == -torch.inf, torch.inf)
    *sums, totals = inputs.sums(planes, maxima, None)
    attended = totals > 0
    log_sums = torch.where(attended, maxima * math.log(2) + totals.log(), torch.inf)
    inverse = torch.where(attended, 1 / totals, 0.0).unsqueeze(-1)
    content_sums, row_sums, column_sums = (part.mul_(inverse) for part in sums)
    return content_sums, row_sums, column_sums, log_sums


def attention_backward(
    content_grad: torch.Tensor,
    row_grad: torch.Tensor,
    column_grad: torch.Tensor,
    content_queries: torch.Tensor,
    row_scores: torch.Tensor,
    column_scores: torch.Tensor,
    content: torch.Tensor,
    scale: torch.Tensor,
    mask: torch.Tensor | None,
    log_sums: torch.Tensor,
    delta: torch.Tensor,
    tokens_need_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of the operator, for float32 inputs."""
    inputs = _Inputs(content_queries, row_scores, column_scores, scale, mask)
    column_grad = _padded(column_grad, inputs.padding, 0.0)
    grads = tuple(grad.contiguous() for grad in (content_grad, row_grad, column_grad, delta))
    shift = log_sums.contiguous() * math.log2(math.e)
    planes = inputs.planes(content * scale.unsqueeze(-1))
    queries_out, rows_out, columns_out, _ = inputs.sums(planes, shift, grads)
    if not tokens_need_grad:
        return queries_out, rows_out, columns_out, content.new_empty(0), scale.new_empty(0)
    planes = inputs.planes(content)
    scale_out = torch.empty_like(planes[:, 0], memory_format=torch.contiguous_format)
    content_out = planes.new_empty(*scale_out.shape, content.shape[-1])
    inputs.launch(
        token_grads_kernel,
        scale_out.numel() // inputs.blocks["block_columns"],
        (content_out, scale_out, planes, *inputs.tables, shift, *grads, *inputs.sizes),
    )
    content_out, scale_out = (
        out[:, :, : inputs.columns].flatten(1, 2).contiguous() for out in (content_out, scale_out)
    )
    return queries_out, rows_out, columns_out, content_out, scale_out


class _Inputs:
    """The inputs in the form that the kernels take, and the arguments of every launch."""

    def __init__(
        self,
        content_queries: torch.Tensor,
        row_scores: torch.Tensor,
        column_scores: torch.Tensor,
        scale: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> None:
        batch, heads, num_queries, channels = content_queries.shape
        self.rows, self.columns = row_scores.shape[-1], column_scores.shape[-1]
        self.scale, self.mask = scale, mask
        self.blocks = _blocks(channels)
        self.padding = -self.columns % self.blocks["block_columns"]
        padded_columns = self.columns + self.padding
        column_scores = _padded(column_scores, self.padding, -torch.inf)
        self.tables = [_by_sample(part) for part in (content_queries, row_scores, column_scores)]
        strides = (table.stride(0) for table in self.tables)
        self.sizes = (*strides, heads, num_queries, self.rows, padded_columns)
        self.batch_heads, self.num_queries = (batch, heads), num_queries
        self.query_blocks = batch * heads * triton.cdiv(num_queries, self.blocks["block_queries"])

    def groups(self, width: int) -> int:
        """Return the number of groups of rows, for sums of `width` numbers per query."""
        enough = ENOUGH_PROGRAMS // max(1, self.query_blocks)
        sums = math.prod(self.batch_heads) * self.num_queries * width
        return max(1, min(enough, self.rows // MIN_ROWS, MAX_PARTIAL_SUMS // max(1, sums)))

    def partial(self, groups: int, *width: int) -> torch.Tensor:
        """Allocate one sum, or `width` of them, per query and group of rows."""
        return self.scale.new_empty(*self.batch_heads, groups, self.num_queries, *width)

    def planes(self, content: torch.Tensor) -> torch.Tensor:
        """Return the tokens' planes with this content, `[batch, planes, rows, padded columns]`."""
        planes = [self.scale.unsqueeze(1)]
        if self.mask is not None:
            bias = torch.zeros_like(self.scale).masked_fill_(~self.mask, -torch.inf)
            planes.append(bias.unsqueeze(1))
        tokens = torch.cat([*planes, content.mT], dim=1).unflatten(-1, (self.rows, self.columns))
        if self.padding:
            tokens = F.pad(tokens, (0, self.padding))
            tokens[:, 0, :, self.columns :] = 1.0
        return tokens

    def sums(
        self, planes: torch.Tensor, shift: torch.Tensor, grads: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the unnormalised sums and their totals.

        With the gradients of the sums and delta, return the gradients of the queries instead.
        """
        content_queries, row_scores, column_scores = self.tables
        widths = content_queries.shape[-1], column_scores.shape[-1]
        groups = self.groups(max(widths))
        content_sums, column_sums = (self.partial(groups, width) for width in widths)
        row_sums = torch.empty_like(row_scores, memory_format=torch.contiguous_format)
        totals = self.partial(groups)
        outputs = (content_sums, row_sums, column_sums, totals)
        inputs = (planes, *self.tables, shift, *(grads or (None,) * 4), *self.sizes, groups)
        programs = self.query_blocks * groups
        self.launch(sums_kernel, programs, outputs + inputs, backward=grads is not None)
        column_sums = _total(column_sums)[..., : self.columns].contiguous()
        return _total(content_sums), row_sums, column_sums, _total(totals)

    def launch(self, kernel: Any, programs: int, arguments: tuple[Any, ...], **flags: bool) -> None:
        """Run programs of a kernel on the inputs' device."""
        with torch.cuda.device_of(self.scale):
            kernel[(programs,)](
                *arguments,
                masked=int(self.mask is not None),
                **flags,
                **self.blocks,
                num_stages=2,
                enable_fp_fusion=True,
            )


def _blocks(channels: int) -> dict[str, int]:
    """Return the block sizes of a kernel, chosen so that all of it stays in an H100's registers."""
    blocks = {"channels": channels, "block_columns": 16}
    if channels <= FEW_CHANNELS.value:
        return blocks | {"block_channels": 0, "block_queries": 64, "num_warps": 2}
    block_channels = max(16, triton.next_power_of_2(channels))
    return blocks | {"block_channels": block_channels, "block_queries": 32, "num_warps": 4}


def _padded(table: torch.Tensor, padding: int, value: float) -> torch.Tensor:
    """Return the table with more columns, or the table itself without padding."""
    return F.pad(table, (0, padding), value=value) if padding else table


def _by_sample(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, contiguous within each sample; a stride of 0 between samples stays 0."""
    if tensor.stride(0) == 0:
        return tensor[:1].contiguous().expand_as(tensor)
    return tensor if tensor[:1].is_contiguous() else tensor.contiguous()


def _total(partial: torch.Tensor) -> torch.Tensor:
    """Sum `[batch, heads, groups, queries, ...]` over the groups of rows."""
    return partial.sum(dim=2) if partial.shape[2] > 1 else partial.squeeze(2)
