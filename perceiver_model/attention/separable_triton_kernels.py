"""The GPU kernels of `separable_attention`, in Triton. `separable_triton` launches them.

A program of the first two kernels holds a block of queries of one head. It takes the columns of the
grid one block at a time, keeps the column scores of that block in registers, and loops over the
rows. The first kernel finds the largest score of each query. With it, the second kernel computes
sums that need no rescaling, and in the backward pass the same sums with other weights. The third
kernel holds a block of tokens and loops over the queries. There are no atomic additions, so equal
inputs give equal bits.

The kernels share these arguments:

    planes: `[batch, planes, rows, columns]`. The planes are the tokens' scale; with a mask, their
        bias, which is 0, or -inf where a token may not be attended; and each content channel, which
        the first two kernels take times the scale.
    queries, row_scores, column_scores: `[batch, heads, queries, channels]`, `[..., rows]` and
        `[..., columns]`, contiguous except for the batch, whose strides are passed.
    shift: `[batch, heads, queries]`, subtracted from the scores; +inf where nothing is attended.
    query_grads, row_grads, column_grads, delta: The arguments of the backward pass, contiguous.
    columns: A multiple of block_columns. Columns beyond the grid have column scores of -inf, scale
        1 and content 0.
    groups: The number of programs that share the rows for one block of queries. Each has its own
        outputs.

GPUs have exponentials with base 2. Scores and shifts are therefore log2(e) times the softmax's.
"""

import triton
import triton.language as tl

from perceiver_model.attention.separable_triton_tiles import (
    add_grads,
    add_products,
    add_sums,
    load_queries,
    load_tokens,
    no_grads,
    no_sums,
    scaled,
    store_grads,
    store_sums,
    sum_by_four,
)

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _program_indices(num_queries, groups, block_queries: tl.constexpr):
    """Return the program's indices: the head in the batch, the group of rows, and the queries."""
    blocks = tl.cdiv(num_queries, block_queries)
    program = tl.program_id(0)
    query = program % blocks * block_queries + tl.arange(0, block_queries)
    return (program // blocks // groups).to(tl.int64), program // blocks % groups, query


@triton.jit
def _load_table(pointers, column, inside):
    """Load `[queries, columns]` of a table, given a pointer to the first column of each query."""
    return tl.load(pointers[:, None] + column[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def maxima_kernel(
    maxima,  # out: [batch, heads, groups, queries], -inf where nothing is attended
    planes,
    queries,
    row_scores,
    column_scores,
    query_stride,
    row_stride,
    column_stride,
    heads,
    num_queries,
    rows,
    columns,
    groups,
    masked: tl.constexpr,
    channels: tl.constexpr,
    block_channels: tl.constexpr,
    block_queries: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Find the largest score of each query in a group of rows."""
    batch_head, group, query = _program_indices(num_queries, groups, block_queries)
    sample, of_head = batch_head // heads, batch_head % heads * num_queries + query
    inside = query < num_queries
    queries += sample * query_stride + of_head * channels
    row_scores += sample * row_stride + of_head * rows
    column_scores += sample * column_stride + of_head * columns
    planes += sample * (1 + masked + channels) * rows * columns
    content_queries = load_queries(queries, inside, channels, block_channels)
    content_queries = scaled(content_queries, LOG2_E, channels)
    # Four neighbouring columns, which one thread holds, share one maximum.
    maximum = tl.full([block_queries, block_columns // 4], float("-inf"), tl.float32)
    for first_column in range(0, columns, block_columns):
        column = first_column + tl.arange(0, block_columns)
        on_columns = _load_table(column_scores, column, inside) * LOG2_E
        for row in range(group * rows // groups, (group + 1) * rows // groups):
            token = planes + row * columns + column
            scale = tl.load(token)[None, :]
            on_row = tl.load(row_scores + row, mask=inside, other=0.0) * LOG2_E
            scores = (on_columns + on_row[:, None]) * scale
            if masked:
                scores += tl.load(token + rows * columns)[None, :]
            token += (1 + masked) * rows * columns
            content = load_tokens(token, rows * columns, channels, block_channels)
            scores = add_products(scores, content_queries, content, channels)
            by_four = tl.reshape(scores, [block_queries, block_columns // 4, 4])
            maximum = tl.maximum(maximum, tl.max(by_four, axis=2))
    maxima += (batch_head * groups + group) * num_queries + query
    tl.store(maxima, tl.max(maximum, axis=1), mask=inside)


@triton.jit
def sums_kernel(
    content_sums,  # out: [batch, heads, groups, queries, channels]
    row_sums,  # out: [batch, heads, queries, rows]
    column_sums,  # out: [batch, heads, groups, queries, columns]
    totals,  # out unless backward: [batch, heads, groups, queries]
    planes,
    queries,
    row_scores,
    column_scores,
    shift,
    query_grads,
    row_grads,
    column_grads,
    delta,
    query_stride,
    row_stride,
    column_stride,
    heads,
    num_queries,
    rows,
    columns,
    groups,
    backward: tl.constexpr,
    masked: tl.constexpr,
    channels: tl.constexpr,
    block_channels: tl.constexpr,
    block_queries: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Compute Σ w scale content, and Σ w scale for each row and each column, of each query.

    The weights w are the exponentials of the shifted scores, and their totals are Σ w. With
    `backward`, these exponentials are the attention weights, and w are the gradients of the scores:
    the attention weights times scale · (query_grads · content + row_grads + column_grads) - delta.
    """
    batch_head, group, query = _program_indices(num_queries, groups, block_queries)
    sample, of_head = batch_head // heads, batch_head % heads * num_queries + query
    of_batch, of_group = batch_head * num_queries, (batch_head * groups + group) * num_queries
    inside = query < num_queries
    queries += sample * query_stride + of_head * channels
    row_scores += sample * row_stride + of_head * rows
    column_scores += sample * column_stride + of_head * columns
    planes += sample * (1 + masked + channels) * rows * columns
    row_sums += of_batch * rows + query * rows
    column_sums += of_group * columns + query * columns
    content_queries = load_queries(queries, inside, channels, block_channels)
    content_queries = scaled(content_queries, LOG2_E, channels)
    query_shift = tl.load(shift + of_batch + query, mask=inside, other=float("inf"))
    if backward:
        query_grads += of_batch * channels + query * channels
        row_grads += of_batch * rows + query * rows
        column_grads += of_batch * columns + query * columns
        content_grads = load_queries(query_grads, inside, channels, block_channels)
        query_delta = tl.load(delta + of_batch + query, mask=inside, other=0.0)
    sums = no_sums(block_queries, block_columns, channels, block_channels)
    total = tl.zeros([block_queries, block_columns // 4], tl.float32)
    for first_column in range(0, columns, block_columns):
        column = first_column + tl.arange(0, block_columns)
        on_columns = _load_table(column_scores, column, inside) * LOG2_E
        if backward:
            grads_on_columns = _load_table(column_grads, column, inside)
        over_rows = tl.zeros([block_queries, block_columns], tl.float32)
        for row in range(group * rows // groups, (group + 1) * rows // groups):
            token = planes + row * columns + column
            scale = tl.load(token)[None, :]
            # The sum over the previous blocks of columns.
            over_columns = tl.load(row_sums + row, mask=inside & (first_column > 0), other=0.0)
            on_row = tl.load(row_scores + row, mask=inside, other=0.0) * LOG2_E
            scores = -query_shift[:, None]
            if masked:
                scores += tl.load(token + rows * columns)[None, :]
            scores = tl.fma(on_columns + on_row[:, None], scale, scores)
            token += (1 + masked) * rows * columns
            content = load_tokens(token, rows * columns, channels, block_channels)
            scores = add_products(scores, content_queries, content, channels)
            weights = tl.exp2(scores)
            if backward:
                on_row = tl.load(row_grads + row, mask=inside, other=0.0)
                grads = tl.fma(grads_on_columns + on_row[:, None], scale, -query_delta[:, None])
                weights *= add_products(grads, content_grads, content, channels)
            else:
                total += sum_by_four(weights)
            sums = add_sums(sums, weights, content, channels)
            over_rows = tl.fma(weights, scale, over_rows)
            over_columns += tl.sum(sum_by_four(weights * scale), axis=1)
            tl.store(row_sums + row, over_columns, mask=inside)
        address = column_sums[:, None] + column[None, :]
        tl.store(address, over_rows, mask=inside[:, None])
        # The next block of columns reads row sums that other threads have stored.
        tl.debug_barrier()
    if not backward:
        tl.store(totals + of_group + query, tl.sum(total, axis=1), mask=inside)
    content_sums += of_group * channels + query * channels
    store_sums(content_sums, sums, inside, channels, block_channels)


@triton.jit
def token_grads_kernel(
    content_out,  # out: [batch, rows, columns, channels]
    scale_out,  # out: [batch, rows, columns]
    planes,
    queries,
    row_scores,
    column_scores,
    shift,
    query_grads,
    row_grads,
    column_grads,
    delta,
    query_stride,
    row_stride,
    column_stride,
    heads,
    num_queries,
    rows,
    columns,
    masked: tl.constexpr,
    channels: tl.constexpr,
    block_channels: tl.constexpr,
    block_queries: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Compute the gradients of the content and of the scale of a block of tokens."""
    program = tl.program_id(0)
    row = program % rows
    first_column = program // rows % (columns // block_columns) * block_columns
    column = first_column + tl.arange(0, block_columns)
    sample = (program // rows // (columns // block_columns)).to(tl.int64)
    planes += sample * (1 + masked + channels) * rows * columns
    token = planes + row * columns + column
    scale = tl.load(token)
    content = load_tokens(
        token + (1 + masked) * rows * columns, rows * columns, channels, block_channels
    )
    content_sum = no_grads(block_queries, block_columns, channels, block_channels)
    scale_sum = tl.zeros([block_queries, block_columns], tl.float32)
    for head in range(heads):
        for first_query in range(0, num_queries, block_queries):
            query = first_query + tl.arange(0, block_queries)
            inside = query < num_queries
            of_head = head * num_queries + query
            of_batch = sample * heads * num_queries + of_head
            address = queries + sample * query_stride + of_head * channels
            content_queries = load_queries(address, inside, channels, block_channels)
            address = column_scores + sample * column_stride + of_head * columns
            products = _load_table(address, column, inside)
            address = row_scores + sample * row_stride + of_head * rows + row
            products += tl.load(address, mask=inside, other=0.0)[:, None]
            products = add_products(products, content_queries, content, channels)
            query_shift = tl.load(shift + of_batch, mask=inside, other=float("inf"))
            scores = tl.fma(products, scale[None, :] * LOG2_E, -query_shift[:, None])
            if masked:
                scores += tl.load(token + rows * columns)[None, :]
            weights = tl.exp2(scores)
            address = query_grads + of_batch * channels
            content_grads = load_queries(address, inside, channels, block_channels)
            grads = _load_table(column_grads + of_batch * columns, column, inside)
            address = row_grads + of_batch * rows + row
            grads += tl.load(address, mask=inside, other=0.0)[:, None]
            grads = add_products(grads, content_grads, content, channels)
            query_delta = tl.load(delta + of_batch, mask=inside, other=0.0)
            score_grads = weights * tl.fma(grads, scale[None, :], -query_delta[:, None])
            scale_sum = tl.fma(weights, grads, scale_sum)
            scale_sum = tl.fma(score_grads, products, scale_sum)
            content_sum = add_grads(content_sum, weights, content_grads, channels)
            content_sum = add_grads(content_sum, score_grads, content_queries, channels)
    offset = sample * rows * columns + row * columns + column
    tl.store(scale_out + offset, tl.sum(scale_sum, axis=0))
    store_grads(content_out + offset * channels, content_sum, scale, channels, block_channels)
