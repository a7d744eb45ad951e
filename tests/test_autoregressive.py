"""Perceiver AR: against the plain formula, cached against uncached, and as a model that learns."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceiver_model.attention import set_attention_path
from perceiver_model.autoregressive import PerceiverAR, next_token_loss
from perceiver_model.autoregressive_config import ARConfig, autoregressive_flops
from perceiver_model.generation import CachedDecoder, generate, sample_tokens
from perceiver_model.rotary import RotaryTable, rotate

TINY = ARConfig(
    vocab_size=11,
    max_length=16,
    num_latents=5,
    channels=16,
    num_self_attends=2,
    num_heads=2,
    widening=2,
    dropout=0.0,
)
VARIANTS = {
    "rotary": TINY,
    "rotary-all-gelu": dataclasses.replace(TINY, rotary_fraction=1.0, activation="gelu_tanh"),
    "learned-tied": dataclasses.replace(
        TINY, positions="learned", tied_logits=True, activation="gelu_erf"
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other make models this small a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_model(config=TINY, dtype=torch.float64, seed=0):
    """A model with every weight and bias random, so that none can be forgotten unnoticed."""
    torch.manual_seed(seed)
    model = PerceiverAR(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def random_ids(*shape, seed=1):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def left_padded(rows):
    """Rows of different lengths as ids `[batch, longest]`, padded with an id, and their mask."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), 3)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = row
        mask[index, longest - len(row) :] = True
    return ids, mask


def plain_logits(model, ids, num_latents):
    """The formulas of one sequence `[length]`, position by position and head by head."""
    config, weights = model.config, model.state_dict()
    width = config.channels // config.num_heads

    def norm(name, x):
        centred = x - x.mean(dim=-1, keepdim=True)
        scale = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def turned(vector, position):
        if config.positions == "learned":
            return vector
        vector, pairs = vector.clone(), int(width * config.rotary_fraction) // 2
        for pair in range(pairs):
            angle = position * config.max_length ** (-pair / (pairs - 1))
            cosine, sine = (torch.tensor(f(angle)).float().item() for f in (math.cos, math.sin))
            x, y = vector[2 * pair].item(), vector[2 * pair + 1].item()
            vector[2 * pair] = x * cosine - y * sine
            vector[2 * pair + 1] = y * cosine + x * sine
        return vector

    def attend(name, latents, query, key, value, query_positions, key_positions):
        attended = torch.zeros_like(latents)
        for row, position in enumerate(query_positions):
            for head in range(config.num_heads):
                part = slice(head * width, (head + 1) * width)
                asked = turned(query[row, part], position)
                seen = [index for index, other in enumerate(key_positions) if other <= position]
                scores = [asked @ turned(key[i, part], key_positions[i]) for i in seen]
                shares = (torch.stack(scores) / width**0.5).softmax(dim=0)
                attended[row, part] = sum(
                    share * value[index, part] for share, index in zip(shares, seen, strict=True)
                )
        latents = latents + linear(f"{name}.output", attended)
        hidden = linear(f"{name}.mlp.expand", norm(f"{name}.mlp_norm", latents))
        if config.activation == "squared_relu":
            hidden = hidden.clamp(min=0) ** 2
        else:
            approximate = {"gelu_tanh": "tanh", "gelu_erf": "none"}[config.activation]
            hidden = torch.nn.functional.gelu(hidden, approximate=approximate)
        return latents + linear(f"{name}.mlp.contract", hidden)

    positions = list(range(len(ids)))
    tokens = weights["token_embedding.weight"][ids]
    if config.positions == "learned":
        tokens = tokens + weights["position_embedding.weight"][: len(ids)]
    late = positions[-num_latents:]
    query = linear("cross_attend.query", norm("cross_attend.query_norm", tokens[late]))
    inputs = norm("cross_attend.input_norm", tokens)
    key, value = linear("cross_attend.key_value", inputs).chunk(2, dim=-1)
    latents = attend("cross_attend", tokens[late], query, key, value, late, positions)
    for index in range(config.num_self_attends):
        name = f"self_attends.{index}"
        normed = norm(f"{name}.attention_norm", latents)
        parts = linear(f"{name}.query_key_value", normed).chunk(3, dim=-1)
        latents = attend(name, latents, *parts, late, late)
    normed = norm("output_norm", latents)
    if config.tied_logits:
        return normed @ weights["token_embedding.weight"].T / config.channels**0.5
    return linear("output", normed)


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


def decoder_errors(decoder, steps, seed=0):
    """Appends random tokens; the largest error of the logits, and the numbers of latents."""
    model, generator = decoder.model, torch.Generator().manual_seed(seed)
    errors, latents = [], []
    for step in range(steps + 1):
        if step:
            decoder.append(torch.randint(11, decoder.logits.shape[:1], generator=generator))
        uncached = model(decoder.token_ids, decoder.mask, num_latents=decoder.num_latents)[:, -1]
        errors.append((uncached - decoder.logits).abs().max().item())
        latents.append(decoder.num_latents)
    return max(errors), latents


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("path", ["reference", "fused"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_logits_equal_uncached_ones_across_refills(variant, path, padded):
    ids, mask = left_padded([random_ids(4), random_ids(2), random_ids(1)])
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model = tiny_model(VARIANTS[variant], dtype)
        set_attention_path(model, path)
        with torch.no_grad():
            decoder = CachedDecoder(model, ids, mask if padded else None)
            error, latents = decoder_errors(decoder, steps=12)
        assert error < tolerance
        assert latents == [2, 3, 4, 5, 2, 3, 4, 5, 2, 3, 4, 5, 2]
        assert decoder.token_ids.shape == (3, 16)
        with pytest.raises(ValueError, match="the context has max_length = 16 columns"):
            decoder.append(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("refill", "shortest"), [(5, 16), (3, 14), (1, 12)])
def test_a_sliding_context_forgets_the_oldest_and_stays_exact(variant, refill, shortest):
    model = tiny_model(VARIANTS[variant])
    ids, mask = left_padded([random_ids(14), random_ids(2)])
    decoder = CachedDecoder(model, ids, mask, refill_latents=refill, sliding=True)
    lengths, tokens = [], [ids]
    for step in range(20):
        token = random_ids(2, seed=step)
        tokens.append(token[:, None])
        decoder.append(token)
        columns = decoder.token_ids.shape[1]
        assert torch.equal(decoder.token_ids, torch.cat(tokens, dim=1)[:, -columns:])
        uncached = model(decoder.token_ids, decoder.mask, num_latents=decoder.num_latents)[:, -1]
        torch.testing.assert_close(decoder.logits, uncached, rtol=0, atol=1e-12)
        lengths.append(columns)
    assert max(lengths) == 16 and min(lengths[2:]) == shortest


def test_refilling_all_latents_is_the_model_itself_at_every_step():
    model = tiny_model()
    decoder = CachedDecoder(model, random_ids(2, 3), refill_latents=5)
    for step in range(13):
        expected = model(decoder.token_ids)[:, -1]
        torch.testing.assert_close(decoder.logits, expected, rtol=0, atol=1e-12)
        decoder.append(random_ids(2, seed=step))


def test_a_step_reads_one_new_column_and_a_refill_its_latents(monkeypatch):
    model = tiny_model()
    read = []
    latents = model.latents
    monkeypatch.setattr(
        model,
        "latents",
        lambda queries, inputs, mask, cache: (
            read.append((queries.content.shape[1], inputs.content.shape[1]))
            or latents(queries, inputs, mask, cache)
        ),
    )
    decoder = CachedDecoder(model, random_ids(1, 4))
    for _ in range(6):
        decoder.append(random_ids(1))
    assert read == [(2, 4), (1, 1), (1, 1), (1, 1), (2, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_generation_takes_the_most_probable_token_of_the_uncached_model(variant):
    model = tiny_model(VARIANTS[variant])
    rows = [random_ids(5), random_ids(2)]
    ids, mask = left_padded(rows)
    generated = generate(model, ids, 10, mask=mask, temperature=0, refill_latents=5)
    assert generated.shape == (2, 15) and torch.equal(generated[:, :5], ids)
    for row, continued in zip(rows, generated, strict=True):
        for length in range(5, 15):
            context = continued[5 - len(row) : length]
            assert continued[length] == model(context[None])[0, -1].argmax()


def test_rows_that_have_ended_stay_at_the_padding_and_generation_stops_when_all_have():
    model = tiny_model()
    ids = random_ids(2, 4)
    free = generate(model, ids, 12, temperature=0)[:, 4:]
    eos = next(
        token
        for token in range(11)
        if all(token in row for row in free) and not torch.equal(*(row == token for row in free))
    )
    ends = [row.tolist().index(eos) for row in free]
    assert ends[0] != ends[1]
    stopped = generate(model, ids, 12, temperature=0, eos_id=eos, pad_id=10)[:, 4:]
    assert stopped.shape[1] == max(ends) + 1
    for row, end, expected in zip(stopped, ends, free, strict=True):
        assert torch.equal(row[: end + 1], expected[: end + 1])
        assert (row[end + 1 :] == 10).all()
    filled = generate(model, ids, 12, temperature=0, eos_id=eos)[:, 4:]
    assert all((row[end:] == eos).all() for row, end in zip(filled, ends, strict=True))


def test_sampling_follows_the_probabilities_that_are_left():
    probabilities = torch.tensor([0.05, 0.4, 0.15, 0.3, 0.1], dtype=torch.float64)
    logits = probabilities.log().expand(40_000, -1)

    def frequencies(**options):
        generator = torch.Generator().manual_seed(0)
        tokens = sample_tokens(logits, generator=generator, **options)
        return tokens.bincount(minlength=5) / len(tokens)

    def near(measured, weights):
        expected = torch.tensor(weights, dtype=torch.float64)
        expected = expected / expected.sum()
        assert ((measured == 0) == (expected == 0)).all()
        assert (measured - expected).abs().max() < 0.01

    near(frequencies(), probabilities.tolist())
    near(frequencies(temperature=0.5), probabilities.square().tolist())
    near(frequencies(top_k=2), [0, 0.4, 0, 0.3, 0])
    near(frequencies(top_k=99), probabilities.tolist())
    near(frequencies(top_p=0.69), [0, 0.4, 0, 0.3, 0])
    near(frequencies(top_p=0.71), [0, 0.4, 0.15, 0.3, 0])
    near(frequencies(top_p=1e-9), [0, 1, 0, 0, 0])
    near(frequencies(top_k=2, top_p=0.5), [0, 1, 0, 0, 0])
    near(frequencies(temperature=0), [0, 1, 0, 0, 0])
    # Divided by so little, 10 would be infinite.
    coldest = sample_tokens(logits[:9].float() + 10, temperature=2e-38)
    assert (coldest == 1).all()
    ties = sample_tokens(torch.zeros(1000, 7), top_k=3)
    assert ties.unique().tolist() == [0, 1, 2]


def test_generation_is_a_function_of_the_generator():
    model, ids = tiny_model(), random_ids(2, 4)

    def sampled(seed):
        return generate(model, ids, 9, generator=torch.Generator().manual_seed(seed)).tolist()

    assert sampled(0) == sampled(0) != sampled(1)


def train(model, batches, learning_rate):
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=len(batches) + 1, pct_start=0.15
    )
    model.train()
    for ids in batches:
        optimiser.zero_grad()
        next_token_loss(model(ids[:, :-1]), ids).backward()
        optimiser.step()
        schedule.step()
    model.eval()


def test_it_learns_a_text_of_bytes_and_continues_it():
    text = "the latents are the last positions of a context that may be much longer than they are. "
    ids = torch.tensor([byte + 6 for byte in (2 * text).encode()])
    config = dataclasses.replace(
        TINY, vocab_size=262, max_length=32, num_latents=16, channels=64, num_heads=4
    )
    torch.manual_seed(0)
    model = PerceiverAR(config)
    starts = torch.randint(len(text), (120, 8))
    train(model, [torch.stack([ids[i : i + 33] for i in row]) for row in starts], 1e-2)
    continued = generate(model, ids[None, :24], len(text), temperature=0, sliding=True)
    assert bytes((continued[0] - 6).tolist()).decode() == (2 * text)[: 24 + len(text)]


def test_it_learns_to_copy_what_lies_before_its_latents():
    # Four random symbols, a long filler, a separator, and the symbols again: the latents are the
    # last 4 columns, the symbol to copy is 25 columns back.
    config = dataclasses.replace(
        TINY, max_length=32, num_latents=4, channels=32, rotary_fraction=1.0
    )

    def batch(generator):
        symbols = torch.randint(3, 11, (32, 4), generator=generator)
        filler = torch.zeros(32, 20, dtype=torch.int64)
        return torch.cat([symbols, filler, filler[:, :1] + 1, symbols], dim=1)

    torch.manual_seed(0)
    model, generator = PerceiverAR(config), torch.Generator().manual_seed(0)
    train(model, [batch(generator) for _ in range(200)], 1e-2)
    unseen = batch(torch.Generator().manual_seed(99))
    assert torch.equal(generate(model, unseen[:, :25], 4, temperature=0), unseen)
    from_latents_alone = model(unseen[:, 21:25])[:, -1].argmax(dim=-1)
    assert (from_latents_alone == unseen[:, 25]).float().mean() < 0.5


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
        ({"vocab_size": 0}, "vocab_size = 0: must be an integer of at least 1"),
        ({"num_latents": 17}, "num_latents = 17: must be at most max_length = 16"),
        ({"channels": 15}, "channels = 15: must be a multiple of num_heads = 2"),
        ({"rotary_fraction": 0.0}, "rotary_fraction = 0.0: must be above 0 and at most 1"),
        ({"rotary_fraction": 0.1}, "rotary_fraction = 0.1: must be enough for 2 of the heads' 8"),
        ({"max_wavelength": 1.0}, "max_wavelength = 1.0: must be a number above 1"),
        ({"positions": "sines"}, "positions = 'sines': must be one of 'rotary', 'learned'"),
        ({"activation": "relu"}, "activation = 'relu': must be one of 'squared_relu'"),
        ({"context_dropout": 1.0}, "context_dropout = 1.0: must be at least 0 and below 1"),
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
        "import sys, perceiver_model.autoregressive_config as c;"
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(random_ids(3)), r"token_ids of torch.int64 \[3\]: expected integers \[batch"),
        (lambda m: m(random_ids(1, 3).float()), "token_ids of torch.float32"),
        (lambda m: m(random_ids(1, 17)), "token_ids of 17 columns: max_length is 16"),
        (lambda m: m(random_ids(1, 3), torch.ones(1, 3)), "mask of torch.float32"),
        (lambda m: m(random_ids(1, 3), num_latents=0), "num_latents = 0: must be at least 1"),
        (lambda m: generate(m, random_ids(1, 0), 1), r"token_ids of torch.int64 \[1, 0\]"),
        (lambda m: generate(m, random_ids(1, 3), 0), "max_new_tokens = 0: must be at least 1"),
        (lambda m: generate(m, random_ids(1, 9), 9), "max_new_tokens = 9: exceed max_length = 16"),
        (lambda m: generate(m, random_ids(1, 9), 1, temperature=-1.0), "temperature = -1.0"),
        (lambda m: generate(m, random_ids(1, 9), 1, top_k=0), "top_k = 0: must be at least 1"),
        (lambda m: generate(m, random_ids(1, 9), 1, top_p=0.0), "top_p = 0.0: must be above 0"),
        (lambda m: generate(m, random_ids(1, 9), 1, refill_latents=6), "refill_latents = 6"),
        (lambda m: generate(m.train(), random_ids(1, 9), 1), "model: in training mode"),
        (
            lambda m: generate(m, random_ids(1, 2), 1, mask=torch.tensor([[True, False]])),
            "rows must be padded on the left and hold a token",
        ),
        (
            lambda m: generate(m, random_ids(1, 2), 1, mask=torch.tensor([[False, False]])),
            "rows must be padded on the left and hold a token",
        ),
        (
            lambda m: CachedDecoder(m, random_ids(2, 2)).append(random_ids(1)),
            r"tokens of shape \[1\]: expected \[2\]",
        ),
        (
            lambda m: next_token_loss(m(random_ids(1, 3)), random_ids(1, 3)),
            "token_ids of 3 columns: expected more than the logits' 3 latents",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model())


def test_generation_to_exactly_the_longest_context_is_allowed():
    model = tiny_model()
    assert generate(model, random_ids(1, 9), 8, temperature=0).shape == (1, 17)
