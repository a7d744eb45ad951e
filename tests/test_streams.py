"""A recurrent Perceiver remembers, in latents of one size, what it read many parts ago.

The streams' parts are four tokens each, of one of eight classes. One token of the first part is
flagged; its class is to be recalled after parts of nothing but distractors.
"""

import pytest
import torch
import torch.nn.functional as F

from perceiver_model.adapters.configs import AudioInput, ChunksConfig
from perceiver_model.config import EncoderConfig
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.streams import read_stream

NUM_CLASSES, NUM_TOKENS = 8, 4
NUM_PARTS = 10
CONFIG = ClassifierConfig(
    input=AudioInput(sample_rate=8_000, num_samples=NUM_TOKENS * (NUM_CLASSES + 1)),
    adapter=ChunksConfig(chunk_size=NUM_CLASSES + 1),
    positions=None,
    encoder=EncoderConfig(
        num_latents=4,
        latent_dim=32,
        num_blocks=1,
        num_cross_attends=1,
        num_self_attends=1,
        cross_channels=32,
        num_self_heads=4,
        latent_init_std=1.0,
    ),
    num_classes=NUM_CLASSES,
)


def streams(batch, num_parts, generator):
    """Parts, each sound `[batch, samples]`, and the labels `[batch]`.

    A token is its class, one-hot, and the flag.
    """
    classes = torch.randint(0, NUM_CLASSES, (num_parts, batch, NUM_TOKENS), generator=generator)
    flagged = torch.randint(0, NUM_TOKENS, (batch,), generator=generator)
    flags = torch.zeros(num_parts, batch, NUM_TOKENS, 1)
    flags[0, torch.arange(batch), flagged] = 1
    tokens = torch.cat([F.one_hot(classes, NUM_CLASSES).float(), flags], dim=-1)
    return tokens.flatten(2), classes[0, torch.arange(batch), flagged]


@pytest.fixture(scope="module")
def trained():
    """Trained through up to ten parts, which grow in number, with the loss after every part."""
    torch.manual_seed(0)
    model, generator = PerceiverClassifier(CONFIG), torch.Generator().manual_seed(1)
    num_steps = 200
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_steps)
    for step in range(num_steps):
        num_parts = min(NUM_PARTS, 2 + step // 10)
        parts, labels = streams(64, num_parts, generator)
        losses = [F.cross_entropy(logits, labels) for logits, _ in read_stream(model, parts)]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def recalled(model, parts, labels):
    """The share of right answers after the last part."""
    with torch.no_grad():
        *_, (logits, _) = read_stream(model, parts)
    return (logits.argmax(dim=-1) == labels).float().mean().item()


@pytest.mark.parametrize("num_parts", [2, NUM_PARTS, 2 * NUM_PARTS])
def test_recalls_the_first_part_after_as_many_as_trained_and_twice_as_many(trained, num_parts):
    parts, labels = streams(500, num_parts, torch.Generator().manual_seed(2))
    assert recalled(trained, parts, labels) >= 0.95


def test_without_the_state_nothing_is_recalled(trained):
    parts, labels = streams(1_000, NUM_PARTS, torch.Generator().manual_seed(2))
    assert recalled(trained, parts[-1:], labels) < 2 / NUM_CLASSES


def test_every_stream_of_a_batch_has_its_own_state(trained):
    parts, labels = streams(500, NUM_PARTS, torch.Generator().manual_seed(3))
    with torch.no_grad():
        *_, (_, state) = read_stream(trained, parts[:5])
        *_, (logits, _) = read_stream(trained, parts[5:], state=state.roll(1, dims=0))
    assert (logits.argmax(dim=-1) == labels.roll(1)).float().mean() >= 0.95


def test_reading_a_stream_is_handing_on_the_state():
    torch.manual_seed(0)
    model = PerceiverClassifier(CONFIG)
    parts, _ = streams(3, 4, torch.Generator().manual_seed(4))
    mask = torch.arange(parts.shape[-1]).expand(3, -1) < 18
    readings = read_stream(model, [(part, mask) for part in parts])
    state = None
    for part, reading in zip(parts, readings, strict=True):
        logits, state = model.forward_state(part, mask, state=state)
        torch.testing.assert_close(reading, (logits, state), rtol=0, atol=0)


def test_parts_are_taken_as_they_come():
    model, taken = PerceiverClassifier(CONFIG), []

    def parts():
        while True:
            taken.append(len(taken))
            yield torch.zeros(1, CONFIG.input.num_samples)

    readings = read_stream(model, parts(), detach_every=1)
    next(readings), next(readings)
    assert len(taken) == 2


def graph_size(tensor):
    """The number of autograd's nodes behind a tensor."""
    found, pending = set(), [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(following for following, _ in node.next_functions)
    return len(found)


def test_memory_does_not_grow_with_the_number_of_parts():
    model = PerceiverClassifier(CONFIG)
    parts, _ = streams(2, 9, torch.Generator().manual_seed(5))
    cut = list(read_stream(model, parts, detach_every=1))
    assert {tuple(state.shape) for _, state in cut} == {(2, 4, 32)}
    assert not any(state.requires_grad for _, state in cut)
    assert len({graph_size(logits) for logits, _ in cut[1:]}) == 1
    every_third = [graph_size(logits) for logits, _ in read_stream(model, parts, detach_every=3)]
    assert every_third[3:6] == every_third[6:9] and every_third[3] < every_third[4]
    whole = [graph_size(logits) for logits, _ in read_stream(model, parts)]
    assert whole == sorted(set(whole))


def test_gradients_reach_the_first_part_unless_cut():
    model = PerceiverClassifier(CONFIG)
    parts, _ = streams(2, 4, torch.Generator().manual_seed(6))
    first = parts[0].clone().requires_grad_()
    *_, (logits, _) = read_stream(model, [first, *parts[1:]])
    assert torch.autograd.grad(logits.square().sum(), first)[0].abs().max() > 0
    *_, (logits, _) = read_stream(model, [first, *parts[1:]], detach_every=3)
    assert torch.autograd.grad(logits.square().sum(), first, allow_unused=True)[0] is None


def test_an_impossible_cut_is_refused():
    with pytest.raises(ValueError, match="detach_every 0: must be at least 1"):
        next(read_stream(PerceiverClassifier(CONFIG), [], detach_every=0))


def test_samples_that_start_begin_from_the_learned_latents():
    torch.manual_seed(0)
    model = PerceiverClassifier(CONFIG).double()
    parts, _ = streams(4, 2, torch.Generator().manual_seed(7))
    parts = parts.double()
    with torch.no_grad():
        _, state = model.forward_state(parts[0])
        starts = torch.tensor([False, True, False, True])
        logits, latents = model(parts[1], state=state, starts=starts, return_state=True)
        carried, anew = model.forward_state(parts[1], state=state), model.forward_state(parts[1])
    for found, on, new in zip((logits, latents), carried, anew, strict=True):
        torch.testing.assert_close(found[~starts], on[~starts], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[starts], new[starts], rtol=1e-12, atol=1e-12)
