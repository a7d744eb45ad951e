"""Attention over rows and columns, against the same sums over an array of all weights."""

import pytest
import torch

from perceiver_model.attention import separable as module
from perceiver_model.attention.separable import separable_attention

BATCH, HEADS, QUERIES, ROWS, COLUMNS, CHANNELS = 3, 2, 4, 5, 6, 3


def arguments(dtype=torch.float64):
    torch.manual_seed(0)
    queries = (BATCH, HEADS, QUERIES)
    shapes = [(*queries, CHANNELS), (*queries, ROWS), (*queries, COLUMNS)]
    shapes += [(BATCH, ROWS * COLUMNS, CHANNELS)]
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    tensors.append(torch.rand(BATCH, ROWS * COLUMNS, dtype=dtype) + 0.5)
    return [tensor.requires_grad_() for tensor in tensors]


def plain(queries, row_scores, column_scores, content, scale, mask):
    scale = scale[:, None, None]
    products = (row_scores[..., :, None] + column_scores[..., None, :]).flatten(-2)
    weights = ((products + queries @ content.mT[:, None]) * scale).exp()
    if mask is not None:
        weights = weights * mask[:, None, None]
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-300) * scale
    by_row = weights.unflatten(-1, (ROWS, COLUMNS))
    return weights @ content[:, None], by_row.sum(dim=-1), by_row.sum(dim=-2)


def masks():
    mask = torch.rand(BATCH, ROWS * COLUMNS, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[1] = False
    first_rows_hidden = torch.arange(ROWS * COLUMNS).expand(BATCH, -1) >= 2 * COLUMNS
    return {"none": None, "random": mask, "first rows hidden": first_rows_hidden}


# Budgets that cut: between rows, between samples, nowhere.
@pytest.mark.parametrize("budget", [1, QUERIES * HEADS * ROWS * COLUMNS * 2, 1 << 20])
@pytest.mark.parametrize("mask", masks().values(), ids=masks())
def test_sums_and_gradients_are_those_of_all_weights(monkeypatch, mask, budget):
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", budget)
    inputs = arguments()
    sums, expected = separable_attention(*inputs, mask), plain(*inputs, mask)
    torch.manual_seed(2)
    directions = [torch.randn_like(part) for part in expected]
    gradients, expected_gradients = (
        torch.autograd.grad(
            sum((a * b).sum() for a, b in zip(parts, directions, strict=True)), inputs
        )
        for parts in (sums, expected)
    )
    torch.testing.assert_close(sums, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=1e-12)


def test_gradients_agree_with_finite_differences():
    inputs, mask = arguments(), masks()["random"]
    assert torch.autograd.gradcheck(
        lambda *tensors: separable_attention(*tensors, mask), inputs, fast_mode=True
    )


def test_large_scores_do_not_overflow():
    inputs = arguments(torch.float32)
    huge = [tensor * 1e3 for tensor in inputs[:3]]
    for part in separable_attention(*huge, *inputs[3:]):
        assert part.isfinite().all()


def test_pixels_without_gradients_get_none():
    *queries, content, scale = arguments()
    content, scale = content.detach(), scale.detach()
    sum(part.sum() for part in separable_attention(*queries, content, scale)).backward()
    assert all(tensor.grad is not None for tensor in queries)
    assert content.grad is None


def test_the_operator_tells_the_compiler_its_shapes_and_gradients():
    torch.library.opcheck(module._separable_attention, (*arguments(), masks()["random"]))
    torch.library.opcheck(module._separable_attention, (*arguments(), None))
