r"""Attention to a grid of tokens whose position features are a sum of rows and columns.

A layer-normalised token is u = r C [x | p]. Here x is its content and p its positions, C removes
the mean over channels, and r is the reciprocal standard deviation. Keys are W_k (g ∘ u + β) + b.
The scores of a query q are, up to a constant that the softmax ignores,

    q · W_k (g ∘ u) = r a · [x | p],    a = C (g ∘ W_kᵀ q).

Values W_v (g ∘ u + β) + b are linear in u, so attention needs only Σ P u = C Σ P r [x | p].

On a grid of rows h and columns w, p = rows[h] + columns[w]. The position's part of a score is
(a · rows[h]) + (a · columns[w]), which are two small tables. Its part of the sum is
Σ_h rows[h] Σ_w P r + Σ_w columns[w] Σ_h P r, which are two marginals of the attention. Each pair of
a query and a token costs content_channels + 2 multiply-adds each way, not 261 × 2, and neither K
nor V nor [x | p] is ever built. The function is the paper's, up to rounding.

`separable_attention` is the middle part, which sees every pair of query and token. `CrossAttend`
computes the parts before and after it.
"""

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import torch

# The number of scores in a chunk of rows: it fits a core's cache, or is enough to fill a GPU.
CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 27}


def separable_attention(
    content_queries: torch.Tensor,
    row_scores: torch.Tensor,
    column_scores: torch.Tensor,
    content: torch.Tensor,
    scale: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return three sums over a grid of tokens, weighted by the attention weights P.

    P is the softmax over tokens i = (h, w) of scale[i] · (content_queries · content[i] +
    row_scores[h] + column_scores[w]). The result is differentiable in all floating-point arguments.
    Memory is linear in tokens + queries, forward and backward.

    Args:
        content_queries: `[batch, heads, queries, content_channels]`, float32 or float64, as are all
            other floating-point arguments.
        row_scores: `[batch, heads, queries, rows]`.
        column_scores: `[batch, heads, queries, columns]`.
        content: `[batch, rows * columns, content_channels]`.
        scale: `[batch, rows * columns]`.
        mask: The tokens that may be attended, bool `[batch, rows * columns]`, or None for all.

    Returns:
        Σ_i P scale content `[batch, heads, queries, content_channels]`, Σ_w P scale
        `[batch, heads, queries, rows]` and Σ_h P scale `[batch, heads, queries, columns]`. They are
        zero for samples without any attended token.
    """
    return _separable_attention(content_queries, row_scores, column_scores, content, scale, mask)[
        :3
    ]


def _eager(
    content_queries: torch.Tensor,
    row_scores: torch.Tensor,
    column_scores: torch.Tensor,
    content: torch.Tensor,
    scale: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sums, and the log of the softmax's denominator `[batch, heads, queries]`."""
    arguments = [tensor.flatten(1, 2) for tensor in (content_queries, row_scores, column_scores)]
    sums = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in arguments]
    log_sums = content.new_empty(arguments[0].shape[:2])
    for samples, row_chunks in _chunks(*arguments):
        content_sums, row_sums, column_sums = (tensor[samples] for tensor in sums)
        maximum = log_sums.new_full((*log_sums[samples].shape, 1), -torch.inf)
        total = torch.zeros_like(maximum)
        for rows, tokens in row_chunks:
            scores = _products(arguments, content, samples, rows, tokens)
            scores.mul_(scale[samples, None, tokens])
            if mask is not None:
                scores.masked_fill_(~mask[samples, None, tokens], -torch.inf)
            new_maximum = torch.maximum(maximum, scores.amax(dim=-1, keepdim=True))
            # If nothing is attended yet, the maximum is -inf, and -inf + inf would be NaN.
            shift = new_maximum.masked_fill(new_maximum == -torch.inf, 0.0)
            decay = (maximum - shift).exp_()
            weights = scores.sub_(shift).exp_()
            total.mul_(decay).add_(weights.sum(dim=-1, keepdim=True))
            weights.mul_(scale[samples, None, tokens])
            by_row = weights.unflatten(-1, (-1, column_scores.shape[-1]))
            row_sums.mul_(decay)[..., rows] = by_row.sum(dim=-1)
            column_sums.mul_(decay).add_(by_row.sum(dim=-2))
            content_sums.mul_(decay).baddbmm_(weights, content[samples, tokens])
            maximum = new_maximum
        attended = total > 0
        inverse = torch.where(attended, 1 / total, 0.0)
        for tensor in (content_sums, row_sums, column_sums):
            tensor.mul_(inverse)
        log_sums[samples] = torch.where(attended, maximum + total.log(), torch.inf).squeeze(-1)
    heads = content_queries.shape[1]
    content_sums, row_sums, column_sums, log_sums = (
        tensor.unflatten(1, (heads, -1)) for tensor in (*sums, log_sums)
    )
    return content_sums, row_sums, column_sums, log_sums


def _eager_backward(
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
    """Return the gradients of content_queries, row_scores, column_scores, content and scale.

    The gradients of content and scale are empty unless `tokens_need_grad`.

    Args:
        delta: Σ_i P_i ∂L/∂P_i, `[batch, heads, queries]`.
    """
    arguments = [tensor.flatten(1, 2) for tensor in (content_queries, row_scores, column_scores)]
    gradients = [tensor.flatten(1, 2) for tensor in (content_grad, row_grad, column_grad)]
    log_sums, delta = (tensor.flatten(1, 2).unsqueeze(-1) for tensor in (log_sums, delta))
    out = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in arguments]
    content_out = torch.zeros_like(content) if tokens_need_grad else content.new_empty(0)
    scale_out = torch.zeros_like(scale) if tokens_need_grad else scale.new_empty(0)
    for samples, row_chunks in _chunks(*arguments):
        queries_out, rows_out, columns_out = (tensor[samples] for tensor in out)
        for rows, tokens in row_chunks:
            token_scale = scale[samples, None, tokens]
            products = _products(arguments, content, samples, rows, tokens)
            scores = products * token_scale
            if mask is not None:
                scores.masked_fill_(~mask[samples, None, tokens], -torch.inf)
            weights = scores.sub_(log_sums[samples]).exp_()
            # ∂L/∂P = scale · weight_grads, and ∂L/∂score = P (∂L/∂P - delta)
            weight_grads = _products(gradients, content, samples, rows, tokens)
            if tokens_need_grad:
                scale_out[samples, tokens] = torch.linalg.vecdot(weights, weight_grads, dim=-2)
                content_out[samples, tokens] = (weights * token_scale).mT @ gradients[0][samples]
            score_grads = weight_grads.mul_(token_scale).sub_(delta[samples]).mul_(weights)
            if tokens_need_grad:
                scale_out[samples, tokens] += torch.linalg.vecdot(score_grads, products, dim=-2)
            product_grads = score_grads.mul_(token_scale)
            if tokens_need_grad:
                content_out[samples, tokens] += product_grads.mT @ arguments[0][samples]
            by_row = product_grads.unflatten(-1, (-1, column_scores.shape[-1]))
            rows_out[..., rows] = by_row.sum(dim=-1)
            columns_out.add_(by_row.sum(dim=-2))
            queries_out.baddbmm_(product_grads, content[samples, tokens])
    heads = content_queries.shape[1]
    queries_out, rows_out, columns_out = (tensor.unflatten(1, (heads, -1)) for tensor in out)
    return queries_out, rows_out, columns_out, content_out, scale_out


def _chunks(
    queries: torch.Tensor, row_scores: torch.Tensor, column_scores: torch.Tensor
) -> Iterator[tuple[slice, list[tuple[slice, slice]]]]:
    """Yield slices of samples, each with a list of slices of whole rows and of their tokens.

    The scores of one chunk stay within a budget if one row of one sample does.
    """
    batch, num_queries, _ = queries.shape
    rows, columns = row_scores.shape[-1], column_scores.shape[-1]
    budget = CHUNK_ELEMENTS["cuda" if queries.is_cuda else "cpu"]
    num_samples = max(1, budget // (num_queries * rows * columns))
    num_rows = max(1, budget // (num_queries * columns))
    row_chunks = [
        (slice(row, row + num_rows), slice(row * columns, (row + num_rows) * columns))
        for row in range(0, rows, num_rows)
    ]
    for sample in range(0, batch, num_samples):
        yield slice(sample, sample + num_samples), row_chunks


def _products(
    arguments: list[torch.Tensor],
    content: torch.Tensor,
    samples: slice,
    rows: slice,
    tokens: slice,
) -> torch.Tensor:
    """Return queries · content + row_scores + column_scores of a chunk.

    The shape is `[samples, queries, tokens]`.
    """
    queries, row_scores, column_scores = (tensor[samples] for tensor in arguments)
    on_grid = row_scores[..., rows, None] + column_scores[..., None, :]
    return on_grid.flatten(-2).baddbmm_(queries, content[samples, tokens].mT)


_separable_attention = torch.library.custom_op(
    "perceiver::separable_attention", _eager, mutates_args=()
)
_separable_attention_backward = torch.library.custom_op(
    "perceiver::separable_attention_backward", _eager_backward, mutates_args=()
)


def _fused(content: torch.Tensor) -> ModuleType | None:
    """Return the fused kernels if they support this content and GPU and Triton is installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    if torch.cuda.get_device_capability(content.device) < (8, 0):
        return None
    from perceiver_model.attention import separable_triton

    return separable_triton if separable_triton.serves(content) else None


@_separable_attention.register_kernel("cuda")
def _(*inputs):  # type: ignore[no-untyped-def]  # torch's hook
    fused = _fused(inputs[3])
    return fused.attention(*inputs) if fused else _eager(*inputs)


@_separable_attention_backward.register_kernel("cuda")
def _(*inputs):  # type: ignore[no-untyped-def]  # torch's hook
    fused = _fused(inputs[6])
    return fused.attention_backward(*inputs) if fused else _eager_backward(*inputs)


@_separable_attention.register_fake
def _(content_queries, row_scores, column_scores, content, scale, mask):  # type: ignore[no-untyped-def]  # torch's hook
    queries = (content_queries, row_scores, column_scores)
    log_sums = content_queries.new_empty(content_queries.shape[:-1])
    return (*(tensor.new_empty(tensor.shape) for tensor in queries), log_sums)


@_separable_attention_backward.register_fake
def _(content_grad, row_grad, column_grad, *saved):  # type: ignore[no-untyped-def]  # torch's hook
    content, scale, tokens_need_grad = saved[3], saved[4], saved[-1]
    shapes = [tensor.shape if tokens_need_grad else (0,) for tensor in (content, scale)]
    queries = (content_grad, row_grad, column_grad)
    return (
        *(tensor.new_empty(tensor.shape) for tensor in queries),
        *(content.new_empty(shape) for shape in shapes),
    )


def _save_for_backward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # torch's hook
    ctx.save_for_backward(*inputs, *output)
    ctx.tokens_need_grad = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
    ctx.set_materialize_grads(True)


def _backward(ctx, content_grad, row_grad, column_grad, _):  # type: ignore[no-untyped-def]  # torch's hook
    *inputs, content_sums, row_sums, column_sums, log_sums = ctx.saved_tensors
    grads = (content_grad, row_grad, column_grad)
    sums = (content_sums, row_sums, column_sums)
    delta = sum((grad * part).sum(dim=-1) for grad, part in zip(grads, sums, strict=True))
    *query_grads, content_out, scale_out = _separable_attention_backward(
        *(grad.contiguous() for grad in grads), *inputs, log_sums, delta, ctx.tokens_need_grad
    )
    token_grads = (content_out, scale_out) if ctx.tokens_need_grad else (None, None)
    return (*query_grads, *token_grads, None)


_separable_attention.register_autograd(_backward, setup_context=_save_for_backward)
