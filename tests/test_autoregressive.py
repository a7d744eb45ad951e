"""Perceiver AR: against the plain formula, and what a training needs of it."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys

import pytest
import torch
from small_autoregressive import TINY, VARIANTS, left_padded, plain_logits, random_ids, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.attention.rotary import RotaryTable, rotate
from perceiver_model.families.autoregressive import PerceiverAR, next_token_loss
from perceiver_model.families.autoregressive_config import ARConfig, autoregressive_flops
from perceiver_model.families.generation import generate


@pytest.mark.parametrize("path", ["reference", "fused"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_plain_formula_for_every_row_of_a_padded_batch(variant, path):
    model = tiny_model(VARIANTS[variant])
    set_attention_path(model, path)
    rows = [random_ids(length, seed=length) for length in (12, 9, 3, 1)]
    ids, mask = left_padded(rows)
    logits = model(ids, mask)
    assert logits.shape == (4, 5, 11)
    for row, row_logits in zip(rows, logits, strict=True):
        num_latents = min(5, len(row))
        expected = plain_logits(model, row, num_latents)
        torch.testing.assert_close(row_logits[-num_latents:], expected, rtol=0, atol=1e-10)
        # Without padding, other kernels are used.
        alone = model(row.unsqueeze(0))[0]
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-10)


def test_more_latents_may_be_asked_for_than_in_training():
    model, ids = tiny_model(), random_ids(12)
    expected = plain_logits(model, ids, 8)
    torch.testing.assert_close(model(ids[None], num_latents=8)[0], expected, rtol=0, atol=1e-10)
    assert model(ids[None], num_latents=99).shape == (1, 12, 11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_the_fused_path_equal_the_reference(variant):
    model = tiny_model(VARIANTS[variant])
    # One row has no token at all.
    ids, mask = left_padded([random_ids(13), random_ids(4), random_ids(0)])
    for case_mask in (None, mask[:, :-1]):
        gradients = []
        for path in ("reference", "fused"):
            set_attention_path(model, path)
            loss_mask = None if case_mask is None else mask
            loss = next_token_loss(model(ids[:, :-1], case_mask), ids, loss_mask)
            gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        for reference, fused in zip(*gradients, strict=True):
            assert reference.isfinite().all() and reference.abs().max() > 0
            torch.testing.assert_close(fused, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", ["reference", "fused"])
def test_a_later_token_changes_no_earlier_logit_and_an_earlier_one_changes_all(path):
    model, ids = tiny_model(), random_ids(1, 12)
    set_attention_path(model, path)
    logits = model(ids)[0]
    for column in range(12):
        changed = ids.clone()
        changed[0, column] = (changed[0, column] + 1) % 11
        differs = (model(changed)[0] != logits).any(dim=-1)
        latent_columns = torch.arange(7, 12)
        assert differs.tolist() == (latent_columns >= column).tolist()


def test_a_row_without_tokens_is_finite_and_padding_changes_nothing():
    model = tiny_model()
    for path in ("reference", "fused"):
        set_attention_path(model, path)
        ids, mask = left_padded([random_ids(8), random_ids(3), random_ids(0)])
        logits = model(ids, mask)
        assert logits.isfinite().all()
        other = model(torch.where(mask, ids, 7), mask)
        assert torch.equal(other[0], logits[0]) and torch.equal(other[1, -3:], logits[1, -3:])
    # Padding on the right: the last columns are the latents, and those with tokens are right.
    row = random_ids(6)
    ids, mask = torch.full((1, 8), 3), torch.arange(8)[None] < 6
    ids[0, :6] = row
    expected = plain_logits(model, row, 3)
    torch.testing.assert_close(model(ids, mask)[0, :3], expected, rtol=0, atol=1e-10)


def test_rotated_scores_depend_on_distance_alone_and_the_rest_is_not_turned():
    table = RotaryTable(max_length=100_001, rotated_channels=6, max_wavelength=100_001)
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 10, dtype=torch.float64)

    def score(query_position, key_position):
        turned = rotate(query, table(torch.tensor([[query_position]])))
        assert torch.equal(turned[..., 6:], query[..., 6:])
        return (turned * rotate(key, table(torch.tensor([[key_position]])))).sum().item()

    assert score(7, 3) == pytest.approx(score(100_000, 99_996), abs=1e-6)
    assert abs(score(7, 3) - score(7, 4)) > 1e-2
    # The slowest pair: one radian over the longest context; the fastest: one a token.
    cosine, sine = table(torch.tensor([[100_000, 1]]))
    assert sine[0, 0, 0, 2].item() == pytest.approx(math.sin(100_000 / 100_001), abs=1e-7)
    assert cosine[0, 0, 1, 0].item() == pytest.approx(math.cos(1), abs=1e-7)


def test_the_loss_counts_tokens_after_tokens():
    logits = torch.randn(2, 3, 11, dtype=torch.float64)
    ids = random_ids(2, 6)
    mask = torch.tensor([[True] * 6, [False, False, False, False, True, True]])
    probabilities = logits.softmax(dim=-1)
    terms = [(0, 0), (0, 1), (0, 2), (1, 2)]  # row 1's first token follows padding
    expected = [-probabilities[row, i, ids[row, 3 + i]].log() for row, i in terms]
    loss = next_token_loss(logits, ids, mask)
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=0, atol=1e-12)
    assert next_token_loss(logits, ids, torch.zeros_like(mask)) == 0
    full = [
        -probabilities[row, i, ids[row, 3 + i]].log()
        for row, i in itertools.product(range(2), range(3))
    ]
    torch.testing.assert_close(
        next_token_loss(logits, ids), torch.stack(full).mean(), rtol=0, atol=1e-12
    )


def test_an_untrained_model_finds_every_token_as_likely():
    ids = random_ids(2, 9)
    torch.manual_seed(0)
    assert next_token_loss(PerceiverAR(TINY)(ids[:, :-1]), ids).item() == pytest.approx(
        math.log(11)
    )
    tied = PerceiverAR(dataclasses.replace(TINY, tied_logits=True, channels=64))
    assert 0.5 < tied(ids).std() < 2


def test_dropout_is_after_every_attention_and_mlp():
    model, ids = tiny_model(dataclasses.replace(TINY, dropout=0.999999)), random_ids(1, 6)
    expected = model.output(model.output_norm(model.token_embedding(ids[:, -5:])))
    assert not torch.allclose(model(ids), expected)
    torch.testing.assert_close(model.train()(ids), expected)


def test_context_dropout_hides_tokens_in_training_only():
    config = dataclasses.replace(TINY, context_dropout=0.999999)
    model, ids = tiny_model(config), random_ids(1, 12)
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 11
    assert not torch.equal(model(ids), model(changed))
    torch.testing.assert_close(model(ids)[0], plain_logits(model, ids[0], 5), rtol=0, atol=1e-10)
    model.train()
    # What is left is each latent's own token, and the latents before it.
    assert torch.equal(model(ids), model(changed))
    assert model(ids).isfinite().all()


def test_it_compiles_to_one_graph():
    config = dataclasses.replace(TINY, num_self_attends=1)
    ids, mask = left_padded([random_ids(9), random_ids(4)])
    model = tiny_model(config)
    for backend, arguments in (("eager", (ids,)), ("aot_eager", (ids, mask))):
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        expected = model(*arguments)
        logits = compiled(*arguments)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
        weights = list(model.parameters())
        for ours, plain in zip(
            torch.autograd.grad(logits.square().sum(), weights),
            torch.autograd.grad(expected.square().sum(), weights),
            strict=True,
        ):
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-9)
    torch._dynamo.reset()


def test_bfloat16_keeps_the_rotation_and_returns_float32():
    model = tiny_model(dtype=torch.float32)
    ids = random_ids(1, 12)
    expected = model(ids)
    logits = model.bfloat16()(ids)
    assert logits.dtype == torch.float32
    assert model.rotary.table().dtype == torch.float32
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()
    assert generate(model, ids, 3, temperature=0).shape == (1, 15)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; must be greater than or equal to 1"),
        ({"num_latents": 17}, "num_latents is 17; must be at most max_length = 16"),
        ({"channels": 15}, "channels is 15; must be a multiple of num_heads = 2"),
        ({"rotary_fraction": 0.0}, "rotary_fraction is 0.0; must be greater than 0"),
        ({"rotary_fraction": 0.1}, "rotary_fraction is 0.1; must be enough for 2 of the heads' 8"),
        ({"max_wavelength": 1.0}, "max_wavelength is 1.0; must be greater than 1"),
        ({"positions": "sines"}, "positions is 'sines'; must be 'rotary' or 'learned'"),
        ({"activation": "relu"}, "activation is 'relu'; must be 'squared_relu'"),
        (
            {"context_dropout": 1.0},
            "context_dropout is 1.0; must be less than 1",
        ),
    ],
)
def test_a_bad_field_is_refused_by_name_and_value(values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **values)


def test_a_configuration_survives_json_and_imports_no_torch():
    config = dataclasses.replace(TINY, positions="learned", max_wavelength=32.0)
    assert ARConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="unknown key"):
        ARConfig.from_dict({"layers": 3})
    program = (
        "import sys, perceiver_model.families.autoregressive_config as c;"
        "c.autoregressive_flops(c.ARConfig()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_flops_are_those_that_torch_counts():
    model = tiny_model()
    set_attention_path(model, "reference")
    for length, num_latents in ((12, None), (12, 9), (3, None)):
        with FlopCounterMode(display=False) as counter:
            model(random_ids(1, length), num_latents=num_latents)
        ours = autoregressive_flops(TINY, length=length, num_latents=num_latents)
        assert ours == counter.get_total_flops()


def test_parameters_of_the_default_configuration():
    with torch.device("meta"):
        model = PerceiverAR(ARConfig())
    width = 1024
    attend = 4 * width * width + 4 * width + 8 * width * width + 5 * width
    norms = 2 * 2 * width
    expected = 13 * (attend + norms) + 2 * width  # the cross-attend's third norm
    expected += 2 * 262 * width + 262 + 2 * width
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
