"""Gradients of a self-attend: once, twice, in batches and through torch.func's transforms."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceiver_model.attention.multi_head import SelfAttend

CHANNELS = 512


def self_attend_and_latents(dtype=torch.float64):
    torch.manual_seed(0)
    module = SelfAttend(channels=16, num_heads=2).to(dtype)
    module.attention_path = "reference"  # fused kernels have no second derivatives
    return module, torch.randn(2, 3, 16, dtype=dtype, requires_grad=True)


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


def test_gradients_are_right_also_twice_and_in_batches():
    module, latents = self_attend_and_latents()
    assert torch.autograd.gradcheck(module, latents, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(module, latents)


def test_transforms_of_torch_func_apply():
    module, latents = self_attend_and_latents()
    parameters = dict(module.named_parameters())

    def loss(parameters, latents):
        return torch.func.functional_call(module, parameters, (latents,)).square().sum()

    expected = torch.autograd.grad(loss(parameters, latents), list(parameters.values()))
    grads = torch.func.grad(loss)(parameters, latents)
    for gradient, wanted in zip(grads.values(), expected, strict=True):
        torch.testing.assert_close(gradient, wanted)
    of_samples = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, latents[:, None])
    for gradient, wanted in zip(of_samples.values(), expected, strict=True):
        torch.testing.assert_close(gradient.sum(dim=0), wanted)


def test_a_flop_counter_sees_the_products():
    module, latents = SelfAttend(channels=CHANNELS, num_heads=4), torch.randn(1, 24, CHANNELS)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(latents)
    # torch's counter does not know attention on CPUs: that counts nothing.
    assert counter.get_total_flops() == 2 * 24 * 6 * CHANNELS**2
