"""What adapters have for sets of few samples: residual stages, n-grams and learned frequencies."""

import dataclasses
import math

import pytest
import torch

from perceiver_model.adapters.build import build_adapter
from perceiver_model.adapters.configs import (
    AudioInput,
    ColumnsConfig,
    ConvConfig,
    FeatureMapInput,
    ImageInput,
    MelConfig,
    MelConvConfig,
    TableInput,
    TextInput,
    TokenEmbeddingConfig,
)
from perceiver_model.adapters.residual import ResidualBlock
from perceiver_model.adapters.table import TableRows
from perceiver_model.adapters.text import MASK, encode_bytes, ngram_buckets, pad_tokens
from perceiver_model.families.classifier_config import ClassifierConfig

IMAGE = ImageInput(height=11, width=8)
SOUND = AudioInput(sample_rate=8_000, num_samples=4_000)
MEL_CONV = MelConvConfig(num_mels=20, num_channels=16, stages=(1, 2))


def adapter_of(media, adapter):
    torch.manual_seed(0)
    positions = {"positions": None} if adapter.holds_positions else {}
    config = ClassifierConfig(input=media, adapter=adapter, num_classes=3, **positions)
    built = build_adapter(config)
    with torch.no_grad():  # new blocks pass their input on; trained ones do not
        for block in built.modules():
            if isinstance(block, ResidualBlock):
                block.second.weight.normal_()
    return config, built


# --- residual stages ---


@pytest.mark.parametrize("stages", [(), (2,), (1, 2), (1, 1, 1)])
def test_each_stage_but_the_first_halves_the_grid_and_doubles_the_channels(stages):
    config, adapter = adapter_of(IMAGE, ConvConfig(num_channels=16, stages=stages))
    halvings = max(0, len(stages) - 1)
    assert config.token_grid == (math.ceil(6 / 2**halvings), math.ceil(4 / 2**halvings))
    assert config.content_channels == 16 * 2**halvings
    content, mask = adapter(torch.rand(2, 11, 8, 3))
    assert content.shape == (2, math.prod(config.token_grid), config.content_channels)
    assert mask is None


def test_the_state_dict_of_a_front_end_without_stages_is_as_before():
    _, adapter = adapter_of(IMAGE, ConvConfig(num_channels=16))
    assert list(adapter.state_dict()) == [
        f"{layer}.{kind}" for layer in ("stem", "norm", "mix") for kind in ("weight", "bias")
    ]


def test_the_flops_of_stages_are_those_of_their_convolutions():
    from torch.utils.flop_counter import FlopCounterMode

    config, adapter = adapter_of(IMAGE, ConvConfig(num_channels=16, stages=(1, 2)))
    with FlopCounterMode(display=False) as counter:
        adapter(torch.rand(1, 11, 8, 3))
    assert config.adapter.flops(IMAGE) == counter.get_total_flops()


def test_new_blocks_pass_their_input_on():
    features = torch.randn(2, 32, 5, 4)
    assert torch.equal(ResidualBlock(32)(features), features)


def test_stages_treat_a_sample_alike_in_any_batch_and_mark_the_tokens_that_see_it():
    _, adapter = adapter_of(IMAGE, ConvConfig(num_channels=16, stages=(1, 1)))
    images = torch.rand(2, 11, 8, 3)
    torch.testing.assert_close(adapter(images)[0][:1], adapter(images[:1])[0])
    mask = torch.zeros(2, 11, 8, dtype=torch.bool)
    mask[:, :5, :3] = True
    changed = torch.where(mask.unsqueeze(-1), images, 1 - images)
    content, token_mask = adapter(images, mask)
    torch.testing.assert_close(adapter(changed, mask)[0], content, rtol=0, atol=0)
    # Tokens are 4 x 4 pixels: two rows and one column of them see valid ones.
    assert token_mask.view(2, 3, 2).tolist() == [[[True, False], [True, False], [False, False]]] * 2


# --- spectrograms as pictures ---


def test_a_spectrogram_gives_the_same_tokens_from_sound_and_from_stored_frames():
    samples = torch.randn(2, 4_000)
    mask = torch.arange(4_000) < torch.tensor([[4_000], [1_500]])
    config, adapter = adapter_of(SOUND, MEL_CONV)
    frames, valid = adapter.mel(samples, mask)
    stored = FeatureMapInput(height=frames.shape[1], width=1, channels=20)
    of_frames, from_frames = adapter_of(stored, MEL_CONV)
    assert config.token_grid == of_frames.token_grid == (math.ceil(frames.shape[1] / 4), 5)
    content, token_mask = adapter(samples, mask)
    again, again_mask = from_frames(frames.unsqueeze(2), valid.unsqueeze(2))
    assert torch.equal(content, again) and torch.equal(token_mask, again_mask)
    assert content.shape == (2, math.prod(config.token_grid), 32)
    assert token_mask[0].all() and not token_mask[1].all()
    noise = torch.where(valid.unsqueeze(-1), frames, 7.0).unsqueeze(2)
    assert torch.equal(from_frames(noise, valid.unsqueeze(2))[0], content)


def test_a_spectrogram_has_the_bands_of_its_stored_frames():
    frames = FeatureMapInput(height=30, width=1, channels=24)
    with pytest.raises(ValueError, match=r"num_mels is 20; .* they are 1 × 24"):
        ClassifierConfig(input=frames, adapter=MEL_CONV, num_classes=3)
    assert MEL_CONV.mel == MelConfig(num_mels=20)


# --- n-grams ---


def test_an_n_gram_has_its_number_wherever_it_stands():
    text = "the cat and the hat"
    buckets = ngram_buckets(encode_bytes(text).unsqueeze(0), 3, 1 << 20)[0].tolist()
    grams = [text[max(0, end - 2) : end + 1] for end in range(len(text))]
    of_gram = dict(zip(grams, buckets, strict=True))
    assert buckets == [of_gram[gram] for gram in grams]
    assert len(set(of_gram.values())) == len(of_gram) < len(grams)


def test_numbers_of_n_grams_are_spread_evenly():
    ids = torch.randint(6, 262, (100, 1_000), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(ngram_buckets(ids, 4, 1_024).flatten(), minlength=1_024)
    expected = 100 * 1_000 / 1_024
    assert ((counts - expected).abs() < 6 * math.sqrt(expected)).all()


def test_a_token_adds_the_vectors_of_the_n_grams_that_end_at_it():
    text = TextInput(max_length=16)
    _, plain = adapter_of(text, TokenEmbeddingConfig(num_channels=8))
    _, adapter = adapter_of(
        text, TokenEmbeddingConfig(num_channels=8, ngrams=(2, 4), num_buckets=64)
    )
    assert "ngram_embedding.weight" not in plain.state_dict()
    plain.load_state_dict(adapter.state_dict(), strict=False)
    ids, mask = pad_tokens([encode_bytes("ein Wort"), encode_bytes("ein")])
    content, _ = adapter(ids, mask)
    vectors = adapter.ngram_embedding.weight
    expected = plain(ids, mask)[0]
    for index, length in enumerate((2, 4)):
        expected = expected + vectors[index * 64 + ngram_buckets(ids, length, 64)]
    torch.testing.assert_close(content, expected)
    torch.testing.assert_close(adapter(ids[1:, :3])[0], content[1:, :3])  # padding changes nothing
    hidden = ids.clone()
    hidden[0, 3] = MASK
    differs = (adapter(hidden, mask)[0] != content).any(dim=2)[0].tolist()
    assert differs == [False] * 3 + [True] * 4 + [False]  # the token and three behind it


@pytest.mark.parametrize(
    ("ngrams", "message"),
    [
        ((1,), "ngrams.0 is 1; .* equal to 2"),
        ((17,), "ngrams.0 is 17; .* equal to 16"),
        ((3, 2), "ngrams is .* rising integers"),
        ((2, 2), "ngrams is .* rising integers"),
    ],
)
def test_other_lengths_of_n_grams_are_refused(ngrams, message):
    with pytest.raises(ValueError, match=message):
        TokenEmbeddingConfig(ngrams=ngrams)


# --- tables ---


def test_numbers_get_sines_and_cosines_at_frequencies_of_their_column():
    table = TableInput(num_numeric=2, mean=(1.0, 0.0), std=(2.0, 1.0))
    config, adapter = adapter_of(table, ColumnsConfig(num_channels=4, num_bands=3))
    rows = TableRows(torch.tensor([[2.0, math.nan], [1.0, 5.0]]), torch.zeros(2, 0).long())
    content, mask = adapter(rows)
    value = (2.0 - 1.0) / 2.0
    angles = 2 * math.pi * value * adapter.frequencies[0]
    waves = torch.cat([angles.sin(), angles.cos()]) @ adapter.waves[0]
    expected = value * adapter.numeric[0] + waves + adapter.columns[0]
    torch.testing.assert_close(content[0, 0], expected)
    assert mask.tolist() == [[True, False], [True, True]] and not content[0, 1].any()
    assert config.adapter.flops(table) == 2 * 2 * 6 * 4


def test_categories_alone_have_no_frequencies():
    _, adapter = adapter_of(TableInput(num_categories=(3,)), ColumnsConfig(num_bands=4))
    assert adapter.frequencies is None and adapter.waves is None


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        (lambda: ConvConfig(stages=(1, 0)), "stages.1 is 0"),
        (lambda: MelConvConfig(stages=(True,)), "stages.0 is True"),
        (lambda: MelConvConfig(hop=0.5), "hop is 0.5"),
        (lambda: ColumnsConfig(num_bands=-1), "num_bands is -1"),
        (lambda: ColumnsConfig(frequency_std=0.0), "frequency_std is 0"),
        (lambda: TokenEmbeddingConfig(num_buckets=1), "num_buckets is 1"),
    ],
)
def test_other_values_are_refused(adapter, told):
    with pytest.raises(ValueError, match=told):
        adapter()


@pytest.mark.parametrize(
    ("media", "adapter"),
    [
        (IMAGE, ConvConfig(stages=(1, 1))),
        (SOUND, MEL_CONV),
        (TextInput(max_length=8), TokenEmbeddingConfig(ngrams=(2, 3))),
        (TableInput(num_numeric=2), ColumnsConfig(num_bands=3)),
    ],
)
def test_configurations_are_read_as_they_were_written(media, adapter):
    config, _ = adapter_of(media, dataclasses.replace(adapter))
    assert ClassifierConfig.from_dict(config.to_dict()) == config
