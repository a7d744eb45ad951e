"""Attention and weight sharing, against plain formulas and published parameter counts."""

import dataclasses

import pytest
import torch

from perceiver_model.attention.cross_attend import CrossAttend
from perceiver_model.attention.multi_head import (
    MLP,
    SelfAttend,
    fused_attention,
    reference_attention,
)
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import EncoderConfig
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.presets import PRESETS
from perceiver_model.flops import forward_flops, num_parameters
from perceiver_model.perceiver import PerceiverEncoder

SMALL = EncoderConfig(
    num_latents=5,
    latent_dim=16,
    num_blocks=4,
    num_cross_attends=4,
    num_self_attends=2,
    num_self_heads=4,
)


def plain_attention(query, key, value, key_mask=None):
    """softmax(QKᵀ / √d) V, where samples without any key give zeros."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = scores.exp()
    if key_mask is not None:
        weights = weights * key_mask[:, None, None, :]
    return weights @ value / weights.sum(dim=-1, keepdim=True).clamp(min=1e-300)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [8, 13])
def test_fused_attention_equals_the_plain_formula(masked, width):
    torch.manual_seed(0)
    query = torch.randn(3, 2, 4, width, dtype=torch.float64, requires_grad=True)
    key = torch.randn(3, 2, 9, width, dtype=torch.float64, requires_grad=True)
    value = torch.randn(3, 2, 9, width, dtype=torch.float64, requires_grad=True)
    key_mask = torch.rand(3, 9) < 0.5
    key_mask[1] = False
    mask = key_mask if masked else None
    weights = torch.randn_like(query)
    results = []
    for attention in (fused_attention, plain_attention):
        attended = attention(query, key, value, mask)
        gradients = torch.autograd.grad((attended * weights).sum(), (query, key, value))
        results.append((attended, *gradients))
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=0, atol=1e-12)


def test_queries_without_valid_keys_read_zero_and_finite_gradients():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 3, 6, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[True, False, True], [False] * 3])
    for attention in (fused_attention, reference_attention):
        attended = attention(query, key, value, mask)
        assert attended[0].abs().min() > 0
        torch.testing.assert_close(attended[1], torch.zeros(2, 3, 6), rtol=0, atol=0)
        key.grad = value.grad = query.grad = None
        attended.square().sum().backward()
        assert key.grad[1].abs().max() == 0 and key.grad[0, :, 1].abs().max() == 0
        assert all(tensor.grad.isfinite().all() for tensor in (query, key, value))


def test_every_query_may_have_its_own_mask():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 3, 6, dtype=torch.float64) for _ in range(3))
    causal = torch.ones(3, 3, dtype=torch.bool).tril(-1).expand(2, -1, -1)
    fused = fused_attention(query, key, value, causal)
    torch.testing.assert_close(fused, reference_attention(query, key, value, causal))
    torch.testing.assert_close(fused[:, :, 0], torch.zeros(2, 2, 6, dtype=torch.float64))
    torch.testing.assert_close(fused[:, :, 1], value[:, :, 0])


def test_masked_tokens_have_no_influence():
    torch.manual_seed(0)
    encoder = PerceiverEncoder(SMALL, input_channels=7)
    inputs = torch.randn(2, 9, 7)
    mask = torch.rand(2, 9) < 0.5
    changed = torch.where(mask.unsqueeze(-1), inputs, 1000 * torch.randn_like(inputs))
    latents = encoder(InputArray(inputs, mask=mask))
    torch.testing.assert_close(encoder(InputArray(changed, mask=mask)), latents, rtol=0, atol=0)
    kept = encoder(InputArray(inputs[:1, mask[0]]))
    torch.testing.assert_close(latents[:1], kept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("imagenet", 44_912_254),
        ("imagenet-cross-attends-first", 44_912_254),
        ("imagenet-one-cross-attend", 42_135_859),
        ("imagenet-unshared", 326_241_856),
    ],
)
def test_published_parameter_counts(name, parameters):
    with torch.device("meta"):
        assert num_parameters(PerceiverClassifier(PRESETS[name])) == parameters


@pytest.mark.parametrize(
    ("name", "published"), [("imagenet", 707.2e9), ("imagenet-one-cross-attend", 404.3e9)]
)
def test_published_flops(name, published):
    assert forward_flops(PRESETS[name]) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("layout", ["interleaved", "first"])
@pytest.mark.parametrize(
    ("share_cross_attends", "share_self_attends", "cross_order", "block_order"),
    [
        ("after_first", True, [0, 1, 1, 1], [0, 0, 0, 0]),
        ("all", False, [0, 0, 0, 0], [0, 1, 2, 3]),
        ("none", False, [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_weights_are_shared_and_applied_in_the_papers_order(
    share_cross_attends, share_self_attends, cross_order, block_order, layout
):
    encoder = PerceiverEncoder(
        dataclasses.replace(
            SMALL,
            share_cross_attends=share_cross_attends,
            share_self_attends=share_self_attends,
            cross_attend_layout=layout,
        ),
        input_channels=7,
    )
    applied = []
    first_self_attends = [block[0] for block in encoder.blocks]
    for kind, modules in (("cross", encoder.cross_attends), ("block", first_self_attends)):
        for index, module in enumerate(modules):
            module.register_forward_hook(lambda *_, name=(kind, index): applied.append(name))
    encoder(InputArray(torch.randn(1, 3, 7)))
    crosses = [("cross", index) for index in cross_order]
    blocks = [("block", index) for index in block_order]
    if layout == "first":
        assert applied == crosses + blocks
    else:
        assert applied == [step for pair in zip(crosses, blocks, strict=True) for step in pair]
    sets = len(set(cross_order)) * num_parameters(encoder.cross_attends[0])
    sets += len(set(block_order)) * num_parameters(encoder.blocks[0])
    assert num_parameters(encoder) == sets + 5 * 16


def test_latents_and_weights_are_initialised_as_published():
    torch.manual_seed(0)
    encoder = PerceiverEncoder(
        EncoderConfig(latent_dim=256, num_blocks=1, num_cross_attends=1, num_self_attends=1),
        input_channels=7,
    )
    assert encoder.latents.std().item() == pytest.approx(0.02, rel=0.02)
    assert encoder.latents.mean().item() == pytest.approx(0, abs=3e-4)
    weight = MLP(channels=256, widening=1).expand.weight
    assert weight.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert weight.abs().max().item() < 2.3 * 256**-0.5


@pytest.mark.parametrize("query_residual", [True, False])
def test_dropout_follows_the_attention_and_the_mlp_of_each_attend(query_residual):
    torch.manual_seed(0)
    latents, tokens = torch.randn(2, 5, 16), InputArray(torch.randn(2, 7, 8))
    self_attend = SelfAttend(channels=16, num_heads=2, dropout=1.0)
    torch.testing.assert_close(self_attend(latents), latents, rtol=0, atol=0)
    cross_attend = CrossAttend(
        query_channels=16,
        input_channels=8,
        num_heads=2,
        query_residual=query_residual,
        dropout=1.0,
    )
    # What is read and what the MLP makes of it are both dropped: only the queries are left.
    expected = latents if query_residual else torch.zeros_like(latents)
    torch.testing.assert_close(cross_attend(latents, tokens)[0], expected, rtol=0, atol=0)
    for attend in (self_attend.eval(), lambda queries: cross_attend.eval()(queries, tokens)[0]):
        assert not torch.equal(attend(latents), expected)


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_latents_start_with_the_configured_deviation(std):
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, num_latents=400, latent_init_std=std)
    encoder = PerceiverEncoder(config, input_channels=16)
    assert encoder.latents.mean().abs().item() < std / 10
    assert encoder.latents.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 2), (0.44, 4), (1.0, 8)])
def test_the_share_of_self_attends_that_is_checkpointed_is_rounded(share, count, monkeypatch):
    attends = []

    def counted(attend, latents, *, use_reentrant):
        attends.append(attend)
        return attend(latents)

    monkeypatch.setattr("perceiver_model.perceiver.checkpoint", counted)
    encoder = PerceiverEncoder(SMALL, input_channels=16)
    encoder.checkpointed_share = share
    encoder(InputArray(torch.randn(1, 6, 16)))
    assert len(attends) == count
    # The first ones: the memory of the others is free again when they are computed once more.
    assert attends == [attend for _ in range(4) for attend in encoder.blocks[0]][:count]
    encoder.eval()(InputArray(torch.randn(1, 6, 16)))
    assert len(attends) == count
