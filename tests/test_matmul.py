"""Large float32 products on CPUs: the same numbers, whichever library multiplies."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceiver_model.attention.matmul import faster_by_onednn, multiply
from perceiver_model.attention.multi_head import SelfAttend

CHANNELS = 512
ONEDNN = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available(),
    reason="products are left to oneDNN on processors with AVX-512 only",
)


def operands(dtype=torch.float32, channels=CHANNELS):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 24, channels), (channels, channels), (channels,)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@ONEDNN
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # as torch's flags set all of themselves
def test_onednn_multiplies_large_float32_matrices_and_nothing_else():
    inputs, weight, _ = operands()
    assert faster_by_onednn(inputs, weight)
    assert faster_by_onednn(inputs, torch.nn.Parameter(weight))
    assert not faster_by_onednn(*operands(torch.float64)[:2])
    assert not faster_by_onednn(*operands(torch.bfloat16)[:2])
    assert not faster_by_onednn(*operands(channels=CHANNELS - 1)[:2])
    assert not faster_by_onednn(inputs.to("meta"), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not faster_by_onednn(inputs, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not faster_by_onednn(inputs, weight)
    with FlopCounterMode(display=False):
        assert not faster_by_onednn(inputs, weight)


@ONEDNN
def test_a_self_attend_asks_onednn_for_every_product_but_those_of_weight_gradients():
    module = SelfAttend(channels=CHANNELS, num_heads=4)
    latents = torch.randn(1, 24, CHANNELS, requires_grad=True)
    with torch.profiler.profile() as profile:
        module(latents).sum().backward()
        with torch.no_grad():
            module(latents)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["mkldnn::_linear_pointwise"] == 3 * 4  # two forward passes, one backward
    assert "aten::addmm" not in calls


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_the_product_is_that_of_the_definition(with_bias, transposed):
    inputs, weight, bias = operands()
    if transposed:
        weight = weight.mT
    expected = inputs.double() @ weight.double().mT + (bias.double() if with_bias else 0)
    product = multiply(inputs, weight, bias if with_bias else None)
    assert product.shape == inputs.shape
    assert product.dtype == torch.float32
    assert (product - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_no_rows_give_no_rows():
    _, weight, bias = operands()
    assert multiply(torch.empty(0, CHANNELS), weight, bias).shape == (0, CHANNELS)


@pytest.mark.parametrize("batched", [False, True])
def test_gradients_are_those_of_float64(batched):
    torch.manual_seed(0)
    module = SelfAttend(channels=CHANNELS, num_heads=4)
    latents = torch.randn(1, 24, CHANNELS, requires_grad=True)
    weights = torch.randn(2, 1, 24, CHANNELS)

    def gradients(module, latents, weights):
        leaves, out = [latents, *module.parameters()], module(latents)
        if batched:
            return torch.autograd.grad(out, leaves, weights, is_grads_batched=True)
        return torch.autograd.grad(out, leaves, weights[0])

    grads = gradients(module, latents, weights)
    expected = gradients(
        module.double(), latents.detach().double().requires_grad_(), weights.double()
    )
    for gradient, wanted in zip(grads, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() <= 1e-5 * wanted.norm()


def test_gradients_of_gradients_are_those_of_float64():
    torch.manual_seed(0)
    module = SelfAttend(channels=CHANNELS, num_heads=4)
    module.attention_path = "reference"  # fused kernels have no second derivatives
    latents = torch.randn(1, 24, CHANNELS)

    def second_gradient(module, latents):
        latents.requires_grad_()
        (first,) = torch.autograd.grad(module(latents).square().sum(), latents, create_graph=True)
        return torch.autograd.grad(first.square().sum(), latents)[0]

    found = second_gradient(module, latents.clone())
    expected = second_gradient(module.double(), latents.double())
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_a_flop_counter_sees_the_products():
    module, latents = SelfAttend(channels=CHANNELS, num_heads=4), torch.randn(1, 24, CHANNELS)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(latents)
    # torch's counter does not know attention on CPUs: that counts nothing.
    assert counter.get_total_flops() == 2 * 24 * 6 * CHANNELS**2
