"""Every path of the cross-attend is the paper's formula: forward, gradients, masks, precisions."""

import pytest
import torch

from perceiver_model.attention.cross_attend import (
    CrossAttend,
    KeysValues,
    NormedGrid,
    token_statistics,
)
from perceiver_model.attention.multi_head import (
    ATTENTION_PATHS,
    attention_weights,
    set_attention_path,
)
from perceiver_model.attention.tokens import InputArray, split_axes
from perceiver_model.fourier import position_table

PATHS = [path for path in ATTENTION_PATHS if path not in ("auto", "reference")]
GRIDS = {"rows and columns": (4, 5), "video": (2, 3, 4), "sound": (7,)}
CONTENT, BANDS = 3, 2


def layer_for(grid, dtype=torch.float64, **options):
    """A cross-attend of 2 heads whose every parameter matters."""
    torch.manual_seed(0)
    channels = CONTENT + len(grid) * (2 * BANDS + 1)
    layer = CrossAttend(
        query_channels=6, input_channels=channels, num_heads=2, qk_channels=8, value_channels=10,
        **options,
    ).to(dtype)  # fmt: skip
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def inputs_for(grid, dtype=torch.float64, masked=False):
    torch.manual_seed(1)
    tokens = torch.Size(grid).numel()
    content = torch.randn(3, tokens, CONTENT, dtype=dtype, requires_grad=True)
    tables = split_axes(position_table(grid, BANDS, grid).to(dtype), grid, BANDS)
    mask = None
    if masked:
        mask = torch.rand(3, tokens) < 0.6
        mask[1] = False
    return InputArray(content, tables, mask)


def results_of(layer, queries, inputs, path, autocast=False):
    """What the queries read, and the gradients of all that led to it."""
    set_attention_path(layer, path)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        read, memory = layer(queries, inputs)
    weights = torch.linspace(-1, 1, read.numel()).view_as(read)
    leaves = [queries, inputs.content, *layer.parameters()]
    return read, torch.autograd.grad((read * weights).sum(), leaves), memory


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_every_path_is_the_plain_formula_forward_and_backward(grid, path, masked):
    layer, inputs = layer_for(grid), inputs_for(grid, masked=masked)
    queries = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    expected, expected_gradients, _ = results_of(layer, queries, inputs, "reference")
    read, gradients, memory = results_of(layer, queries, inputs, path)
    assert isinstance(memory, NormedGrid) == (path == "separable" and len(grid) > 1)
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-12)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 2e-5), ("autocast", 0.02), ("bfloat16", 0.03)]
)
def test_every_path_is_close_in_lower_precision(path, precision, tolerance):
    grid = (6, 7)
    exact_layer, exact_inputs = layer_for(grid), inputs_for(grid, masked=True)
    exact_queries = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    expected, expected_gradients, _ = results_of(
        exact_layer, exact_queries, exact_inputs, "reference"
    )
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    layer = layer_for(grid).to(dtype)
    inputs = exact_inputs._replace(
        content=exact_inputs.content.detach().to(dtype).requires_grad_(),
        axis_tables=tuple(table.to(dtype) for table in exact_inputs.axis_tables),
    )
    queries = exact_queries.detach().to(dtype).requires_grad_()
    read, gradients, _ = results_of(layer, queries, inputs, path, precision == "autocast")
    assert (read - expected).norm() < tolerance * expected.norm()
    # The keys' bias has no gradient, so its rounding is measured against that of the others.
    largest = max(wanted.norm() for wanted in expected_gradients)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient - wanted).norm() < 3 * tolerance * (wanted.norm() + 0.02 * largest)


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_gradients_agree_with_finite_differences(path):
    layer, inputs = layer_for((2, 3)), inputs_for((2, 3), masked=True)
    set_attention_path(layer, path)
    queries = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)

    def read(queries, content, *parameters):
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        arguments = (queries, inputs._replace(content=content))
        return torch.func.functional_call(layer, named, arguments)[0]

    assert torch.autograd.gradcheck(
        read, (queries, inputs.content, *layer.parameters()), fast_mode=True
    )


def test_cross_attend_is_pre_norm_with_residuals():
    layer, inputs = layer_for((4, 5)), inputs_for((4, 5))
    queries = torch.randn(3, 4, 6, dtype=torch.float64)

    def norm(tokens, layer_norm):
        centred = tokens - tokens.mean(dim=-1, keepdim=True)
        variance = centred.square().mean(dim=-1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * layer_norm.weight + layer_norm.bias

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))

    normed = norm(inputs.dense(), layer.input_norm)
    heads = []
    for head in range(2):
        query = layer.query(norm(queries, layer.query_norm)).chunk(2, dim=-1)[head]
        key, value = (part(normed).chunk(2, dim=-1)[head] for part in (layer.key, layer.value))
        weights = (query @ key.mT / 4**0.5).exp()
        heads.append(weights / weights.sum(dim=-1, keepdim=True) @ value)
    attended = layer.output(torch.cat(heads, dim=-1))
    for residual in (True, False):
        layer.query_residual = residual
        expected = queries + attended if residual else attended
        hidden = gelu(layer.mlp.expand(norm(expected, layer.mlp_norm)))
        expected = expected + layer.mlp.contract(hidden)
        torch.testing.assert_close(layer(queries, inputs)[0], expected)


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_queries_shared_by_the_batch_and_memory_change_nothing(path):
    layer, inputs = layer_for((4, 5)), inputs_for((4, 5), masked=True)
    set_attention_path(layer, path)
    shared = torch.randn(1, 4, 6, dtype=torch.float64)
    read, memory = layer(shared, inputs)
    torch.testing.assert_close(read, layer(shared.expand(3, -1, -1), inputs)[0])
    later = torch.randn(3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(later, inputs, memory)[0], layer(later, inputs)[0])


def test_statistics_are_layer_normalisations():
    inputs = inputs_for((4, 5))
    with torch.no_grad():
        inputs = inputs._replace(content=inputs.content * 50 + 1000)
    mean, scale = token_statistics(inputs, 1e-5)
    dense = inputs.dense()
    torch.testing.assert_close(mean, dense.mean(dim=-1))
    torch.testing.assert_close(scale, (dense.var(dim=-1, unbiased=False) + 1e-5).rsqrt())


def test_axis_tables_rebuild_the_table_exactly_and_permuted_ones_stay_whole():
    grid = (4, 5)
    table = position_table(grid, BANDS, grid)
    rows, columns = split_axes(table, grid, BANDS)
    assert (rows.shape, columns.shape) == ((4, 10), (5, 10))
    assert torch.equal(InputArray(table, (rows, columns)).positions(), table)
    permuted = table[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    (whole,) = split_axes(permuted, grid, BANDS)
    assert torch.equal(whole, permuted)


def test_auto_takes_the_separable_path_for_pixels_and_keys_where_these_are_cheaper():
    grid = (4, 5)
    tables = split_axes(position_table(grid, 64, grid), grid, 64)
    pixels = CrossAttend(query_channels=6, input_channels=3 + 258, num_heads=1)
    _, memory = pixels(torch.randn(1, 4, 6), InputArray(torch.randn(2, 20, 3), tables))
    assert isinstance(memory, NormedGrid)
    narrow = CrossAttend(query_channels=6, input_channels=3 + 258, num_heads=4, qk_channels=64)
    _, memory = narrow(torch.randn(1, 512, 6), InputArray(torch.randn(2, 20, 3), tables))
    assert isinstance(memory, KeysValues)


def test_the_attention_map_is_a_distribution_over_unmasked_tokens():
    layer, inputs = layer_for((4, 5)), inputs_for((4, 5), masked=True)
    queries = torch.randn(3, 4, 6, dtype=torch.float64)
    weights = layer.attention_map(queries, inputs)
    assert weights.shape == (3, 2, 4, 20)
    assert inputs.mask is not None
    assert (weights * ~inputs.mask[:, None, None]).abs().max() == 0
    totals = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(weights.sum(dim=-1), totals.expand(3, 2, 4))


def test_attention_weights_are_zero_where_nothing_may_be_attended():
    weights = attention_weights(
        torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3), torch.zeros(1, 2) > 0
    )
    assert torch.equal(weights, torch.zeros(1, 1, 2, 2))


def test_an_unknown_path_is_refused():
    with pytest.raises(ValueError, match="attention path 'fast': must be one of auto, reference"):
        set_attention_path(layer_for((4, 5)), "fast")
