"""Adapters: what their tokens hold, which are valid, and what padding may not change."""

import dataclasses
import math

import pytest
import torch

from perceiver_model.adapters.build import (
    ChunkAdapter,
    ConvAdapter,
    MelAdapter,
    PatchAdapter,
    PixelAdapter,
)
from perceiver_model.adapters.configs import (
    AudioInput,
    ChunksConfig,
    ConvConfig,
    ImageInput,
    MelConfig,
    PatchesConfig,
)

IMAGE = ImageInput(height=6, width=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
AUDIO = AudioInput(sample_rate=8_000, num_samples=4_001)
IMAGE_ADAPTERS = [
    pytest.param(PixelAdapter(IMAGE), id="pixels"),
    pytest.param(PatchAdapter(IMAGE, PatchesConfig(patch_size=2)), id="patches"),
    pytest.param(ConvAdapter(IMAGE, ConvConfig(num_channels=5)), id="conv"),
]
AUDIO_ADAPTERS = [
    pytest.param(ChunkAdapter(AUDIO, ChunksConfig(chunk_size=100)), id="chunks"),
    pytest.param(MelAdapter(AUDIO, MelConfig(num_mels=20)), id="mel"),
]


def images(*, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 6, 8, 3), dtype=torch.uint8, generator=generator)


def sound(*, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-9_000, 9_000, (batch, 4_001), dtype=torch.int16, generator=generator)


@pytest.mark.parametrize("adapter", IMAGE_ADAPTERS)
def test_uint8_and_floating_images_agree(adapter):
    torch.testing.assert_close(adapter(images())[0], adapter(images() / 255)[0])


@pytest.mark.parametrize("adapter", AUDIO_ADAPTERS)
def test_int16_and_floating_sound_agree(adapter):
    torch.testing.assert_close(adapter(sound())[0], adapter(sound() / 32_768)[0])


def test_pixels_are_standardised_per_channel_in_row_major_order():
    content, mask = PixelAdapter(IMAGE)(images())
    assert content.shape == (2, 48, 3) and content.dtype == torch.float32 and mask is None
    expected = (images()[1, 2, 5, 2].item() / 255 - 0.6) / 0.3
    assert content[1, 2 * 8 + 5, 2].item() == pytest.approx(expected)


def test_patches_hold_their_pixels_in_order():
    pixels = PixelAdapter(IMAGE)(images())[0].view(2, 6, 8, 3)
    content, _ = PatchAdapter(IMAGE, PatchesConfig(patch_size=2))(images())
    assert content.shape == (2, 12, 12)
    torch.testing.assert_close(content[1, 1 * 4 + 3], pixels[1, 2:4, 6:8].flatten())


@pytest.mark.parametrize(("height", "width", "tokens"), [(6, 8, 12), (5, 7, 12), (1, 1, 1)])
def test_conv_gives_one_token_per_two_by_two_pixels_rounded_up(height, width, tokens):
    image = ImageInput(height=height, width=width, channels=1)
    content, mask = ConvAdapter(image, ConvConfig(num_channels=5))(
        torch.rand(2, height, width, 1), torch.ones(2, height, width, dtype=torch.bool)
    )
    assert content.shape == (2, tokens, 5)
    assert mask.shape == (2, tokens) and mask.all()


def test_conv_treats_a_sample_alike_in_any_batch():
    adapter = ConvAdapter(IMAGE, ConvConfig(num_channels=5))
    torch.testing.assert_close(adapter(images())[0][:1], adapter(images()[:1])[0])


@pytest.mark.parametrize("adapter", IMAGE_ADAPTERS)
def test_what_invalid_pixels_hold_is_without_influence(adapter):
    mask = torch.zeros(2, 6, 8, dtype=torch.bool)
    mask[:, :3, :5] = True
    changed = torch.where(mask.unsqueeze(-1), images(), 255 - images())
    content, token_mask = adapter(images(), mask)
    torch.testing.assert_close(adapter(changed, mask)[0], content, rtol=0, atol=0)
    pixels_per_token = 48 // token_mask.shape[1]
    assert token_mask.sum(dim=1).tolist() == [15 if pixels_per_token == 1 else 2 * 3] * 2


@pytest.mark.parametrize("adapter", AUDIO_ADAPTERS)
def test_what_invalid_samples_hold_is_without_influence(adapter):
    mask = torch.arange(4_001) < torch.tensor([[1_234], [0]])
    changed = torch.where(mask, sound(), -sound())
    content, token_mask = adapter(sound(), mask)
    torch.testing.assert_close(adapter(changed, mask)[0], content, rtol=0, atol=0)
    assert content.isfinite().all() and content[1].abs().max() == 0
    assert not token_mask[1].any()


def test_chunks_are_runs_of_samples_and_valid_if_any_sample_is():
    mask = torch.arange(4_001) < torch.tensor([[1_201], [4_001]])
    content, token_mask = ChunkAdapter(AUDIO, ChunksConfig(chunk_size=100))(sound(), mask)
    assert content.shape == (2, 41, 100)
    torch.testing.assert_close(content[1, 3], sound()[1, 300:400] / 32_768)
    assert content[1, 40, 0] == sound()[1, 4_000] / 32_768 and not content[1, 40, 1:].any()
    assert token_mask.sum(dim=1).tolist() == [13, 41]


@pytest.mark.parametrize("frequency", [300.0, 1_000.0, 3_000.0])
def test_a_tone_is_loudest_in_the_mel_band_around_its_frequency(frequency):
    adapter = MelAdapter(AUDIO, MelConfig(num_mels=20))
    tone = torch.sin(2 * math.pi * frequency * torch.arange(4_001) / 8_000)
    content, _ = adapter(tone.unsqueeze(0))
    assert content.shape == (1, 49, 20)
    centres = torch.arange(1, 21) / 21 * 2595 * math.log10(1 + 4_000 / 700)
    nearest = (centres - 2595 * math.log10(1 + frequency / 700)).abs().argmin()
    assert (content[0, :-1].argmax(dim=-1) == nearest).all()


def test_mel_tokens_are_standardised_over_valid_frames_only():
    mask = torch.arange(4_001) < torch.tensor([[2_000], [4_001]])
    content, token_mask = MelAdapter(AUDIO, MelConfig(num_mels=20))(sound(), mask)
    for sample, valid in zip(content, token_mask, strict=True):
        assert sample[valid].mean().item() == pytest.approx(0, abs=1e-4)
        assert sample[valid].std(correction=0).item() == pytest.approx(1, abs=1e-3)
        assert not sample[~valid].any()


@pytest.mark.parametrize(
    "adapter",
    [MelAdapter(AUDIO, MelConfig(num_mels=20)), PixelAdapter(IMAGE)],
    ids=["mel", "pixels"],
)
def test_neither_casts_nor_autocast_change_the_float32_standardisation(adapter):
    inputs = sound() if isinstance(adapter, MelAdapter) else images()
    before, _ = adapter(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        after, _ = adapter.bfloat16()(inputs)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("adapter", "inputs", "mask", "message"),
    [
        (PixelAdapter(IMAGE), torch.zeros(2, 3, 6, 8), None, r"\[2, 3, 6, 8\]: .*batch, 6, 8, 3"),
        (PixelAdapter(IMAGE), images().int(), None, "torch.int32: expected torch.uint8 or float"),
        (PixelAdapter(IMAGE), images(), torch.ones(2).bool(), r"mask of shape \[2\]"),
        (PixelAdapter(IMAGE), images(), torch.ones(2, 6, 8), "dtype torch.float32: .* torch.bool"),
        (AUDIO_ADAPTERS[0].values[0], sound()[:, 1:], None, r"\[2, 4000\]: .*\[batch, 4001\]"),
        (AUDIO_ADAPTERS[0].values[0], sound().long(), None, "torch.int64: expected torch.int16"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(adapter, inputs, mask, message):
    with pytest.raises(ValueError, match=message):
        adapter(inputs, mask)


def test_mel_cells_are_the_frames_one_number_a_token():
    audio, mel = AudioInput(sample_rate=8_000, num_samples=1_000), MelConfig(num_mels=8)
    samples = torch.rand(2, 1_000, generator=torch.Generator().manual_seed(0)) - 0.5
    mask = (torch.arange(1_000) < 500).expand(2, -1)
    frames, valid = MelAdapter(audio, mel)(samples, mask)
    by_cell = dataclasses.replace(mel, tokens="cells")
    cells, valid_cells = MelAdapter(audio, by_cell)(samples, mask)
    assert by_cell.token_grid(audio) == tuple(frames.shape[1:])
    assert torch.equal(cells.squeeze(-1).view_as(frames), frames)
    assert torch.equal(valid_cells.view(2, -1, 8), valid.unsqueeze(-1).expand(-1, -1, 8))
    assert not valid.all()
