"""Perceiver AR's generation: cached against uncached, sampled, and of a model that has learnt."""

import dataclasses

import pytest
import torch
from small_autoregressive import TINY, VARIANTS, left_padded, random_ids, tiny_model

from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.families.autoregressive import PerceiverAR, next_token_loss
from perceiver_model.families.generation import CachedDecoder, generate, sample_tokens


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(random_ids(3)), r"token_ids of torch.int64 \[3\]: expected integers \[batch"),
        (lambda m: m(random_ids(1, 3).float()), "token_ids of torch.float32"),
        (lambda m: m(random_ids(1, 17)), "token_ids of 17 columns: max_length is 16"),
        (lambda m: m(random_ids(1, 3), torch.ones(1, 3)), "mask of torch.float32"),
        (lambda m: m(random_ids(1, 3), num_latents=0), "num_latents is 0; must be at least 1"),
        (lambda m: generate(m, random_ids(1, 0), 1), r"token_ids of torch.int64 \[1, 0\]"),
        (lambda m: generate(m, random_ids(1, 3), 0), "max_new_tokens is 0; must be at least 1"),
        (lambda m: generate(m, random_ids(1, 9), 9), "max_new_tokens = 9: exceed max_length = 16"),
        (lambda m: generate(m, random_ids(1, 9), 1, temperature=-1.0), "temperature is -1.0"),
        (lambda m: generate(m, random_ids(1, 9), 1, top_k=0), "top_k is 0; must be at least 1"),
        (lambda m: generate(m, random_ids(1, 9), 1, top_p=0.0), "top_p is 0.0; must be above 0"),
        (lambda m: generate(m, random_ids(1, 9), 1, refill_latents=6), "refill_latents is 6"),
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
