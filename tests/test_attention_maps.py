"""Attention maps: those the model applies, their pictures, and how far the input decides them."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from perceiver_model.adapters.configs import ImageInput, PixelsConfig
from perceiver_model.attention.cross_attend import CrossAttend
from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.attention.tokens import InputArray
from perceiver_model.attention_maps import (
    cross_attention_maps,
    map_divergence,
    on_grid,
    overlay,
)
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig
from perceiver_model.families.autoregressive import PerceiverAR
from perceiver_model.families.autoregressive_config import ARConfig
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig

CONFIG = ClassifierConfig(
    input=ImageInput(height=6, width=5, channels=2),
    adapter=PixelsConfig(),
    positions=FourierConfig(num_bands=3),
    encoder=EncoderConfig(
        num_latents=4,
        latent_dim=16,
        num_blocks=3,
        num_cross_attends=3,
        num_self_attends=1,
        num_cross_heads=2,
        num_self_heads=2,
        latent_init_std=1.0,
    ),
    decoder=DecoderConfig(num_heads=4),
    num_classes=3,
)


def classifier(path="auto"):
    torch.manual_seed(0)
    model = PerceiverClassifier(CONFIG)
    set_attention_path(model, path)
    return model


def images(batch=3):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 6, 5, 2, generator=generator)


@pytest.mark.parametrize("path", ["auto", "fused", "separable"])
def test_every_applied_cross_attend_gives_the_map_that_its_result_needs(path):
    model = classifier(path).eval()
    mask = torch.rand(3, 6, 5) < 0.6
    maps = cross_attention_maps(model, images(), mask)
    assert [tuple(weights.shape) for weights in maps] == [(3, 2, 4, 30)] * 3 + [(3, 4, 1, 4)]
    seen = []

    def check(module, arguments, result):
        queries, inputs = arguments[:2]
        values = module.value(module.input_norm(inputs.dense())).unflatten(
            -1, (module.num_heads, -1)
        )
        attended = maps[len(seen)] @ values.transpose(1, 2)
        latents = queries + module.output(attended.transpose(1, 2).flatten(2))
        expected = latents + module.mlp(module.mlp_norm(latents))
        torch.testing.assert_close(result[0], expected, rtol=1e-4, atol=1e-5)
        seen.append(module)

    for module in model.modules():
        if isinstance(module, CrossAttend):
            module.register_forward_hook(check)
    model(images(), mask)
    first, shared = model.encoder.cross_attends
    assert seen == [first, shared, shared, model.head.decoder.cross_attend]
    for weights in maps[:3]:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 2, 4))
        assert weights[~mask.flatten(1)[:, None, None].expand_as(weights)].eq(0).all()


def test_chosen_cross_attends_and_latents_are_those_of_the_whole():
    model = classifier()
    maps = cross_attention_maps(model, images())
    assert [len(maps), len(cross_attention_maps(model, images(), index=1))] == [4, 1]
    chosen = cross_attention_maps(model, images(), index=[0, 2], latents=[3, 1])
    for weights, number in zip(chosen, [0, 2], strict=True):
        torch.testing.assert_close(weights, maps[number][:, :, [3, 1]])


def test_maps_of_an_encoder_alone():
    encoder = classifier().encoder
    tokens = torch.randn(2, 7, CONFIG.input_channels)
    maps = cross_attention_maps(encoder, inputs=InputArray(tokens), state=None, index=0)
    weights = encoder.cross_attends[0].attention_map(encoder.latents[None], InputArray(tokens))
    torch.testing.assert_close(maps, [weights.detach()])


def test_maps_of_a_causal_cross_attend():
    torch.manual_seed(0)
    config = ARConfig(
        vocab_size=11, max_length=9, num_latents=4, channels=16, num_self_attends=1, num_heads=2
    )
    model = PerceiverAR(config).eval()
    ids = torch.randint(0, 11, (3, 9))
    mask = torch.arange(9) >= torch.tensor([[0], [2], [1]])
    (weights,) = cross_attention_maps(model, ids, mask)
    seen = mask[:, None] & (torch.arange(9) <= torch.arange(5, 9)[:, None])
    assert torch.equal(weights > 0, seen[:, None].expand(-1, 2, -1, -1))
    (chosen,) = cross_attention_maps(model, ids, mask, latents=[2])
    torch.testing.assert_close(chosen, weights[:, :, [2]])

    def check(attend, arguments, result):
        queries, inputs = arguments[:2]
        _, values = attend.key_value(attend.input_norm(inputs.content)).chunk(2, dim=-1)
        attended = weights @ values.unflatten(-1, (2, 8)).transpose(1, 2)
        latents = queries.content + attend.output(attended.transpose(1, 2).flatten(2))
        expected = latents + attend.mlp(attend.mlp_norm(latents))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)

    model.cross_attend.register_forward_hook(check)
    model(ids, mask)


def test_the_model_is_left_as_it_was():
    model = classifier().train()
    model.encoder.blocks.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    maps = cross_attention_maps(model, images())
    assert not any(weights.requires_grad for weights in maps)
    with pytest.raises(ValueError, match="inputs of shape"):
        cross_attention_maps(model, images()[:, :3])
    with pytest.raises(ValueError, match="latent 4: a cross-attend has 4 queries"):
        cross_attention_maps(model, images(), latents=[4])
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_maps_are_those_of_evaluation():
    config = dataclasses.replace(CONFIG, encoder=dataclasses.replace(CONFIG.encoder, dropout=0.5))
    torch.manual_seed(0)
    model = PerceiverClassifier(config).train()
    maps = cross_attention_maps(model, images())
    torch.testing.assert_close(maps, cross_attention_maps(model.eval(), images()), rtol=0, atol=0)


def test_a_compiled_model_gives_the_same_maps_and_is_not_compiled_again():
    model, graphs = classifier().eval(), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    compiled(images())
    torch.testing.assert_close(
        cross_attention_maps(compiled, images()), cross_attention_maps(model, images())
    )
    assert len(graphs) == 1


def test_what_has_no_such_map_is_refused():
    with pytest.raises(ValueError, match="index 4: the model applied 4 cross-attends"):
        cross_attention_maps(classifier(), images(), index=4)
    with pytest.raises(ValueError, match="the model applied 0 cross-attends"):
        cross_attention_maps(nn.Linear(2, 2), images())
    with pytest.raises(ValueError, match=r"30 tokens: does not fit the grid \(6, 4\)"):
        on_grid(torch.zeros(1, 30), (6, 4))


def test_maps_on_the_grid_follow_row_major_order():
    maps = torch.arange(24.0).view(2, 12)
    assert on_grid(maps, (3, 4)).shape == (2, 3, 4)
    assert on_grid(maps, (3, 4))[1, 2, 1] == 12 + 9


def content_images(batch=4):
    """Two channels of x and 1 - x with x 0 or 1: once standardised, all pixels have one norm."""
    generator = torch.Generator().manual_seed(2)
    bright = torch.randint(0, 2, (batch, 6, 5, 1), generator=generator)
    return torch.cat([bright, 1 - bright], dim=-1).float()


def attends_by(model, content_weight, position_weight):
    """Keys (and queries) that see a token's content and positions with these factors."""
    with torch.no_grad():
        for cross_attend in model.encoder.cross_attends:
            cross_attend.key.weight[:, :2] *= content_weight
            cross_attend.key.weight[:, 2:] *= position_weight
    return model


def test_attention_by_position_alone_does_not_depend_on_the_input():
    by_position = attends_by(classifier(), content_weight=0.0, position_weight=5.0)
    maps = cross_attention_maps(by_position, content_images(), index=0)[0]
    assert maps.max() > 5 / 30
    assert map_divergence(maps) < 1e-6


def test_attention_by_content_depends_on_the_input():
    by_content = attends_by(classifier(), content_weight=40.0, position_weight=0.0)
    maps = cross_attention_maps(by_content, content_images(), index=0)[0]
    # Two images of random bits share half of the pixels that a latent looks at.
    assert 0.3 < map_divergence(maps) < 0.7


def test_divergence_is_that_of_the_formula():
    maps = torch.rand(3, 2, 4, 6, dtype=torch.float64)
    maps[0, 0, 0, :3] = 0
    maps = maps / maps.sum(dim=-1, keepdim=True)

    def entropy(weights):
        return -torch.xlogy(weights, weights).sum(dim=-1) / np.log(2)

    pairs = [(maps[a], maps[b]) for a, b in [(0, 1), (0, 2), (1, 2)]]
    expected = [entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2 for p, q in pairs]
    assert map_divergence(maps) == pytest.approx(torch.stack(expected).mean().item(), abs=1e-12)


def test_divergence_runs_from_equal_maps_to_maps_with_nothing_in_common():
    one = torch.rand(1, 2, 3, 8).softmax(dim=-1)
    assert map_divergence(one.expand(3, -1, -1, -1)) == 0
    apart = torch.eye(8)[:4].view(4, 1, 1, 8)
    assert map_divergence(apart) == 1
    assert map_divergence(apart[[0, 0, 1, 1]]) == pytest.approx(4 / 6)


def test_masks_alone_make_no_divergence():
    by_position = attends_by(classifier(), content_weight=0.0, position_weight=5.0)
    mask = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[3] = False
    maps = cross_attention_maps(by_position, content_images(), mask, index=0)[0]
    assert map_divergence(maps, mask.flatten(1)) < 1e-6 < 0.1 < map_divergence(maps)
    # A sample without any token is left out; nothing is left to compare without the others.
    assert map_divergence(maps[2:].flip(0).repeat(2, 1, 1, 1)) == 0
    with pytest.raises(ValueError, match="no two inputs have attended the same tokens"):
        map_divergence(maps[2:])
    with pytest.raises(ValueError, match=r"mask of shape \[4, 6, 5\]"):
        map_divergence(maps, mask)
    with pytest.raises(ValueError, match="at least two inputs"):
        map_divergence(maps[:1])


@pytest.mark.parametrize("shape", [(12, 20), (12, 20, 1), (12, 20, 3)])
def test_an_overlay_is_bright_where_the_map_is(shape):
    image = np.full(shape, 0.2)
    weights = torch.zeros(3, 4)
    weights[2, 1] = 0.01
    picture = overlay(image, weights)
    assert picture.dtype == np.uint8 and picture.shape == (12, 20, 3)
    row, column = np.unravel_index(picture.sum(axis=-1).argmax(), (12, 20))
    assert row // 4 == 2 and column // 5 == 1
    np.testing.assert_array_equal(overlay(np.round(image * 255).astype(np.uint8), weights), picture)


def test_an_overlay_keeps_the_image_at_opacity_0_and_only_the_map_at_1():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    weights = np.linspace(0, 0.3, 30).reshape(6, 5)
    np.testing.assert_array_equal(overlay(image, weights, opacity=0), image)
    heat = overlay(image, weights, opacity=1).astype(int)
    assert heat[0, 0].max() < 8 and heat[-1, -1].tolist() == [252, 255, 164]
    lightness = heat @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness.ravel()) > 0).all()


def test_colours_are_perceptually_even():
    """Neighbouring colours are about equally far apart in CIELAB, another such space."""
    share = np.linspace(0, 1, 33)[None]
    colours = overlay(np.zeros((1, 33)), share, opacity=1)[0] / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz).T / [0.9505, 1.0, 1.089]
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack(
        [116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])],
        -1,
    )
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=-1)
    assert (np.diff(lab[:, 0]) > 0).all()
    # The two spaces disagree about the darkest colours.
    assert steps[4:].max() < 3 * steps[4:].min()


@pytest.mark.parametrize(
    ("image", "weights", "message"),
    [
        (np.zeros((4, 4, 2)), np.ones((2, 2)), r"image of shape \[4, 4, 2\]"),
        (np.full((4, 4), 2.0), np.ones((2, 2)), r"outside of \[0, 1\]"),
        (np.zeros((4, 4), dtype=np.int64), np.ones((2, 2)), "image of dtype int64"),
        (np.zeros((4, 4)), np.ones(4), r"a map of shape \[4\]"),
        (np.zeros((4, 4)), np.array([[0.0, -1.0]]), "negative or not finite"),
        (np.zeros((4, 4)), np.array([[0.0, np.nan]]), "negative or not finite"),
    ],
)
def test_an_overlay_refuses_what_is_no_image_or_no_map(image, weights, message):
    with pytest.raises(ValueError, match=message):
        overlay(image, weights)
