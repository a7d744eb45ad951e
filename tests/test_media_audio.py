"""Sound files of every kind to mono int16 at one rate."""

import io
from dataclasses import replace

import av
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from small_media import refusal
from sounds import encoded, tone

from pipeline.media import (
    AudioFormat,
    MediaError,
    decode,
    decode_member,
    encode_member,
)
from pipeline.media.decode import decode_all

FORMAT = AudioFormat(sample_rate=8000, seconds=1.0)
KINDS = [
    {"format": "WAV", "subtype": "PCM_16"},
    {"format": "WAV", "subtype": "PCM_24"},
    {"format": "WAV", "subtype": "FLOAT"},
    {"format": "FLAC"},
    {"format": "OGG"},
    {"format": "OGG", "subtype": "OPUS"},
    {"format": "MP3"},
    {"format": "AIFF"},
]


def loudest_hertz(sound: np.ndarray, rate: int) -> float:
    """The frequency with the most power."""
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(power.argmax() * rate / len(sound))


def loudness(sound: np.ndarray) -> float:
    """Amplitude of a tone, its ends left out; 1 is full scale."""
    middle = sound[1000:-1000].astype(float) / 32767
    return float(np.sqrt(2 * np.mean(middle**2)))


# --- formats ---


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()))
def test_every_kind_of_file_gives_its_tone(kind):
    sound = decode(encoded(tone(440, 16_000), 16_000, **kind), FORMAT)
    assert (sound.dtype, sound.ndim) == (np.int16, 1)
    assert abs(len(sound) - 8000) <= 100
    assert loudest_hertz(sound, 8000) == pytest.approx(440, abs=2)
    assert loudness(sound) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("kind", KINDS[:2] + KINDS[3:4], ids=lambda kind: "-".join(kind.values()))
def test_lossless_files_at_the_wanted_rate_keep_their_samples(kind):
    written = np.random.default_rng(0).integers(-32768, 32768, 8000).astype(np.int16)
    read = decode(encoded(written, 8000, **kind), FORMAT)
    assert np.abs(read.astype(int) - written).max() <= 1


def test_gsm_is_read_in_wav_and_as_bare_frames():
    sound = tone(440, 8000)
    in_wav = decode(encoded(sound, 8000, format="WAV", subtype="GSM610"), FORMAT)
    frames = encoded(sound, 8000, format="RAW", subtype="GSM610")
    assert len(frames) % 33 == 0
    for name in ("prompts/yes.gsm", "YES.GSM"):
        bare = decode(frames, FORMAT, name=name)
        assert loudest_hertz(bare, 8000) == pytest.approx(440, abs=2)
        assert np.array_equal(bare[:8000], in_wav[: len(bare)])


def test_a_partial_gsm_frame_at_the_end_is_refused_or_left_out():
    frames = encoded(tone(440, 8000), 8000, format="RAW", subtype="GSM610")
    told = "cut short: 5 of the 33 bytes of its last frame are there"
    assert refusal(decode, frames[: 33 * 10 + 5], FORMAT, name="a.gsm") == told
    cut = decode(frames[: 33 * 10 + 5], FORMAT, name="a.gsm", strict=False)
    assert 10 * 160 <= len(cut) <= 11 * 160


# --- channels, rate and length ---


def test_channels_are_averaged():
    left = tone(440, 8000)
    alone = decode(encoded(left, 8000), FORMAT)
    half = decode(encoded(np.stack([left, 0 * left], axis=1), 8000), FORMAT)
    assert np.abs(half.astype(int) - alone / 2).max() <= 1
    assert not decode(encoded(np.stack([left, -left], axis=1), 8000), FORMAT).any()
    both = decode(encoded(np.stack([left] * 6, axis=1), 8000), FORMAT)
    assert np.abs(both.astype(int) - alone).max() <= 1


@pytest.mark.parametrize("rate", [6000, 11_025, 16_000, 44_100, 48_000])
def test_resampling_keeps_frequency_loudness_and_length(rate):
    sound = decode(encoded(tone(1000, rate), rate), FORMAT)
    assert abs(len(sound) - 8000) <= 1
    assert loudest_hertz(sound, 8000) == pytest.approx(1000, abs=2)
    assert loudness(sound) == pytest.approx(0.5, rel=0.02)


def test_resampling_lets_no_frequency_fold_over():
    inaudible = decode(encoded(tone(7000, 44_100), 44_100), FORMAT)  # above 8000 Hz / 2
    assert np.abs(inaudible[500:-500]).max() < 100


def test_long_recordings_are_cut_to_their_beginning():
    sound = np.concatenate([tone(500, 8000), tone(1500, 8000, seconds=3)])
    cut = decode(encoded(sound, 8000), FORMAT)
    assert len(cut) == FORMAT.num_samples == 8000
    assert loudest_hertz(cut, 8000) == pytest.approx(500, abs=2)


@pytest.mark.parametrize("rate", [4000, 11_025, 22_051, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("seconds", [0.5, 0.333, 1.23457])
def test_a_cut_recording_is_the_beginning_of_the_whole_one_resampled(rate, seconds):
    fmt = AudioFormat(sample_rate=16_000, seconds=seconds)
    exactly = round(rate * seconds)
    noise = np.random.default_rng(0).normal(0, 0.2, 3 * exactly).astype(np.float32)
    for num_samples in (exactly - 1, exactly, exactly + 1, exactly + 40, 3 * exactly):
        whole = soxr.resample(noise[:num_samples], rate, 16_000)
        wanted = np.clip(np.rint(whole * 32768), -32768, 32767)[: fmt.num_samples]
        assert np.array_equal(decode(encoded(noise[:num_samples], rate), fmt), wanted)


def test_a_long_recording_is_never_too_short():
    fmt = AudioFormat(sample_rate=11_025, seconds=0.0333, min_seconds=0.0333)  # 367.13 samples
    for rate in (11_025, 44_100):
        assert len(decode(encoded(tone(440, rate), rate), fmt)) == 367


def test_short_recordings_are_kept_as_they_are():
    assert len(decode(encoded(tone(440, 8000, seconds=0.25), 8000), FORMAT)) == 2000


def test_silence_is_sound():
    assert not decode(encoded(np.zeros(8000, np.float32), 8000), FORMAT).any()


def test_values_beyond_full_scale_are_clipped():
    sound = decode(encoded(tone(440, 8000, loudness=50.0), 8000), FORMAT)
    assert (sound.min(), sound.max()) == (-32768, 32767)


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from([4000, 8000, 11_025, 22_050, 44_100]),
    samples=st.integers(1, 30_000),
    channels=st.integers(1, 3),
)
def test_the_length_is_never_more_than_asked_for(rate, samples, channels):
    data = encoded(np.zeros((samples, channels), np.float32), rate)
    if samples < 0.02 * rate:
        with pytest.raises(MediaError, match="shorter than min_seconds"):
            decode(data, FORMAT)
    else:
        sound = decode(data, FORMAT)
        assert sound.dtype == np.int16
        assert abs(len(sound) - min(8000, samples * 8000 / rate)) <= 1


# --- shards' side ---


@pytest.mark.parametrize("length", [1, 160, 8000])
@pytest.mark.parametrize("rate", [1000, 8000, 192_000])
def test_flac_in_a_shard_loses_nothing(length, rate):
    sound = np.random.default_rng(0).integers(-32768, 32768, length).astype(np.int16)
    fmt = AudioFormat(sample_rate=rate, seconds=9.0, encoding="flac")
    content = encode_member(sound, fmt)
    assert fmt.member == "audio.flac" and content[:4] == b"fLaC"
    assert content == encode_member(sound, fmt)
    again = decode_member(memoryview(content), fmt)
    assert again.dtype == np.int16 and np.array_equal(again, sound)


def test_flac_is_smaller():
    fmt = AudioFormat(sample_rate=8000, seconds=1.0, encoding="flac")
    sound = decode(encoded(tone(440, 8000), 8000), fmt)
    assert len(encode_member(sound, fmt)) < 0.6 * sound.nbytes


def test_a_damaged_flac_in_a_shard_is_refused():
    fmt = AudioFormat(encoding="flac")
    content = encode_member(decode(encoded(tone(440, 16_000), 16_000), fmt), fmt)
    with pytest.raises(MediaError):
        decode_member(content[: len(content) // 2], fmt)


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.0])
def test_flac_without_a_length_as_streams_write_it(seconds):
    sound = tone(440, 16_000)
    data = bytearray(encoded(sound, 16_000, format="FLAC", subtype="PCM_16"))
    # The number of samples: the last 36 bits before the checksum of STREAMINFO.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    found = decode(bytes(data), AudioFormat(sample_rate=16_000, seconds=seconds))
    assert len(found) == min(seconds, 1) * 16_000


def test_int16_samples_at_their_own_rate_are_stored_as_they_are():
    every = np.arange(-32768, 32768).astype(np.int16)
    data = encoded(every, 16_000, format="WAV", subtype="PCM_16")
    assert np.array_equal(decode(data, AudioFormat(sample_rate=16_000, seconds=5.0)), every)


def mp3(sound: np.ndarray, rate: int, **options: str) -> bytes:
    """An MP3 by LAME, without a table that tells its length."""
    buffer = io.BytesIO()
    untold = {"write_xing": "0", "id3v2_version": "0"}
    with av.open(buffer, "w", format="mp3", options=untold) as output:
        stream = output.add_stream("libmp3lame", rate=rate, layout="mono", options=options)
        frame = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
        frame.sample_rate = rate
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def test_mp3_of_variable_rate_that_does_not_tell_its_length_is_read_whole():
    rate = 44_100
    sound = np.random.default_rng(0).normal(0, 0.2, 10 * rate).astype(np.float32)
    sound[2 * rate :] = 0
    fmt = AudioFormat(sample_rate=16_000, seconds=60.0)
    variable = mp3(sound, rate, flags="+qscale", global_quality=str(4 * 118))
    whole = decode(variable, fmt)  # libsndfile alone would read 80,465 of 442,368 samples
    constant = decode(mp3(sound, rate, b="128000"), fmt)
    for found in (whole, constant):
        assert abs(len(found) - 160_000) < 2_000
    start = decode(variable, AudioFormat(sample_rate=16_000, seconds=1.0))  # by libsndfile
    assert len(start) == 16_000
    assert np.abs(whole[:16_000].astype(int) - start).max() <= 1


# --- clips ---

CLIPS = AudioFormat(sample_rate=8000, seconds=0.25, min_seconds=0.1, clips="all")


@pytest.mark.parametrize("rate", [8000, 22_050])
@pytest.mark.parametrize("kind", KINDS[:4], ids=lambda kind: "-".join(kind.values()))
def test_the_clips_of_a_recording_are_the_whole_recording(rate, kind):
    data = encoded(tone(440, rate, seconds=0.85), rate, **kind)
    whole = decode(data, AudioFormat(sample_rate=8000, seconds=60.0))
    clips = list(decode_all(data, CLIPS))
    assert [len(clip) for clip in clips] == [2000, 2000, 2000, 800]
    assert np.array_equal(np.concatenate(clips), whole)
    assert np.array_equal(decode(data, CLIPS), clips[0])
    assert np.array_equal(decode(data, replace(CLIPS, clips="first")), clips[0])


def test_a_last_clip_that_is_too_short_is_left_out():
    lengths = [len(c) for c in decode_all(encoded(tone(440, 8000, seconds=0.55), 8000), CLIPS)]
    assert lengths == [2000, 2000]
    lengths = [len(c) for c in decode_all(encoded(tone(440, 8000, seconds=0.15), 8000), CLIPS)]
    assert lengths == [1200]


def test_a_recording_that_is_cut_short_gives_no_clip():
    data = encoded(tone(440, 8000, seconds=0.9), 8000, format="WAV", subtype="PCM_16")
    assert "cut short" in refusal(lambda: list(decode_all(data[:-2000], CLIPS)))
    lenient = list(decode_all(data[:-2000], CLIPS, strict=False))
    assert [len(clip) for clip in lenient] == [2000, 2000, 2000]
