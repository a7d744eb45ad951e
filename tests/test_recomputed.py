"""What is computed again in the backward pass is what was computed forward, and is not kept."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from perceiver_model.attention.multi_head import SelfAttend
from perceiver_model.attention.recomputed import activated_linear, add_residual, normed_linear


def modules(dtype):
    torch.manual_seed(0)
    parts = [nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)]
    for part in parts:
        part.to(dtype)
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.5)
    return parts


def results(tokens, recomputed, approximate, dtype, autocast):
    norm, expand, contract = modules(dtype)
    gelu = nn.GELU(approximate=approximate)
    tokens = tokens.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if recomputed:
            update = activated_linear(gelu, contract, normed_linear(norm, expand, tokens))
            out = add_residual(tokens, update, contract)
        else:
            out = tokens + contract(gelu(expand(norm(tokens))))
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    leaves = [tokens, *norm.parameters(), *expand.parameters(), *contract.parameters()]
    return out, torch.autograd.grad((out * weights).sum(), leaves)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [
        (torch.float64, False, 1e-12),
        (torch.float32, False, 1e-5),
        (torch.float32, True, 0.02),
        (torch.bfloat16, False, 0.02),
    ],
    ids=["float64", "float32", "autocast", "bfloat16"],
)
def test_it_is_the_plain_layers_forward_and_backward(approximate, dtype, autocast, tolerance):
    tokens = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected, expected_grads = results(tokens, False, approximate, dtype, autocast)
    out, grads = results(tokens, True, approximate, dtype, autocast)
    assert torch.equal(out, expected)
    for gradient, wanted in zip(grads, expected_grads, strict=True):
        assert gradient.dtype == wanted.dtype
        assert (gradient - wanted).norm() <= tolerance * wanted.norm()


def kept_bytes(module, latents):
    """Bytes of what the forward pass keeps, the parameters and the input aside."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(latents)
    for tensor in (latents, *module.parameters()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def test_a_self_attend_keeps_six_arrays_of_the_latents_size():
    module = SelfAttend(channels=64, num_heads=2)
    latents = torch.randn(1, 128, 64, requires_grad=True)
    array = latents.numel() * 4
    # Queries, keys and values; what they read; the latents after it; the MLP's hidden layer.
    assert kept_bytes(module, latents) < 6.2 * array
    module.mlp.contract.register_forward_hook(lambda *_: None)  # wants to be called: GELU is kept
    assert kept_bytes(module, latents) > 6.9 * array


def test_a_residual_is_added_in_place_where_nobody_else_reads_the_update():
    tokens, layer = torch.ones(2, 3, 6), modules(torch.float32)[2]
    hidden = torch.randn(2, 3, 8)

    def in_place(tokens):
        update = layer(hidden)
        return add_residual(tokens, update, layer).data_ptr() == update.data_ptr()

    assert in_place(tokens)
    assert not in_place(tokens.double())
    with torch.no_grad():
        assert not in_place(tokens)
    layer.register_forward_hook(lambda *_: None)  # may have kept what it saw
    assert not in_place(tokens)


def test_modules_of_other_kinds_are_called():
    class Doubled(nn.Linear):
        def forward(self, tokens):
            return 2 * super().forward(tokens)

    norm, _, _ = modules(torch.float32)
    layer = Doubled(6, 8)
    tokens = torch.randn(2, 3, 6)
    torch.testing.assert_close(normed_linear(norm, layer, tokens), layer(norm(tokens)))


def self_attend_and_latents(dtype=torch.float64):
    torch.manual_seed(0)
    module = SelfAttend(channels=16, num_heads=2).to(dtype)
    module.attention_path = "reference"  # fused kernels have no second derivatives
    return module, torch.randn(2, 3, 16, dtype=dtype, requires_grad=True)


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


def test_gradients_of_frozen_weights_are_not_computed():
    def flops(module, latents):
        with FlopCounterMode(display=False) as counter:
            module(latents).sum().backward()
        return counter.get_total_flops()

    module, latents = self_attend_and_latents(torch.float32)
    trained = flops(module, latents)
    module.requires_grad_(False)
    rows, channels = 6, 16
    assert flops(module, latents) == trained - 2 * rows * 6 * channels**2
    assert latents.grad is not None
