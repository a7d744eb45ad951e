"""Log-mel frames in shards: those of the model's own front end."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sounds import encoded, tone

from perceiver_model.adapters.audio import MelAdapter
from perceiver_model.adapters.configs import AudioInput, MelConfig
from perceiver_model.adapters.mel import log_mel, standardise_frames
from pipeline.media import AudioFormat, check_array, decode, decode_member, encode_member
from pipeline.media.audio.mel import MelFormat

MELS = [MelFormat(), MelFormat(num_mels=20, window=0.032, hop=0.032)]


@pytest.mark.parametrize("mel", MELS, ids=["VGGish", "coarse"])
@pytest.mark.parametrize("samples", [16_000, 16_001, 8000, 401, 400, 330])
def test_mel_frames_are_those_of_the_models_own_front_end(mel, samples):
    sound = encoded(tone(440, 16_000)[:samples] + tone(3000, 16_000)[:samples], 16_000)
    fmt = AudioFormat(sample_rate=16_000, seconds=1.0)
    frames = decode(sound, replace(fmt, mel=mel))
    raw = decode(sound, fmt)
    audio = AudioInput(sample_rate=16_000, num_samples=16_000)
    adapter = MelAdapter(audio, MelConfig(num_mels=mel.num_mels, window=mel.window, hop=mel.hop))
    padded = torch.zeros(1, 16_000, dtype=torch.int16)
    padded[0, : len(raw)] = torch.from_numpy(raw)
    valid = torch.arange(16_000)[None] < len(raw)
    content, mask = adapter(padded, valid)
    ours = torch.from_numpy(frames.astype(np.float32))
    assert (frames.dtype, frames.shape) == (np.float16, (int(mask.sum()), mel.num_mels))
    # float16 keeps 11 bits: half a step is 2**-11 of a value, and energies reach e**9.
    standardised = standardise_frames(ours[None], None)[0]
    assert torch.allclose(standardised, content[0, mask[0]], atol=5e-3)
    exact = log_mel(
        adapter._frames(padded / 32768) * adapter.window(), adapter.filterbank(), adapter.fft_size
    )
    assert torch.allclose(ours, exact[0, mask[0]], rtol=2**-11, atol=2e-3)


def test_a_tone_lies_in_its_mel_band():
    fmt = AudioFormat(mel=MelFormat())
    frames = decode(encoded(tone(1000, 16_000, seconds=3.0), 16_000), fmt)
    assert frames.shape == fmt.shape == (199, 64)
    mels = 2595 * np.log10(1 + np.array([1000, 8000]) / 700)
    assert set(frames.argmax(axis=1)) <= {
        round(65 * mels[0] / mels[1]) - 1 + near for near in (-1, 0, 1)
    }


def test_mel_frames_go_into_a_shard_as_they_are():
    fmt = AudioFormat(mel=MelFormat())
    frames = decode(encoded(tone(440, 16_000), 16_000), fmt)
    assert fmt.member == "audio.mel.npy"
    again = decode_member(encode_member(frames, fmt), fmt)
    assert again.dtype == np.float16 and np.array_equal(again, frames)
    check_array(frames, fmt)
    with pytest.raises(ValueError, match="does not fit"):
        check_array(frames[:, :-1], fmt)


def test_silence_has_the_floors_logarithm():
    frames = decode(encoded(np.zeros(16_000, np.float32), 16_000), AudioFormat(mel=MelFormat()))
    assert np.allclose(frames, np.log(1e-6), atol=0.01)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_mels": 0}, "num_mels is 0; must be greater than or equal to 1"),
        ({"window": 0.0}, "window is 0.0; must be greater than 0"),
        ({"hop": float("nan")}, "hop is nan; must be a finite number"),
        ({"hop": 0.03}, "hop is 0.03; must be at most window = 0.025"),
    ],
)
def test_a_mel_format_refuses_what_cannot_be(fields, told):
    with pytest.raises(ValueError, match=told):
        MelFormat(**fields)
