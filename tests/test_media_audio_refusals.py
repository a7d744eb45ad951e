"""Which sounds and formats are refused, and how much a malformed file may cost."""

import json
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_media import refusal
from sounds import encoded, tone

from pipeline.media import (
    AudioFormat,
    MediaError,
    decode,
    media_from_dict,
    media_to_dict,
)
from pipeline.media.audio.mel import MelFormat

FORMAT = AudioFormat(sample_rate=8000, seconds=1.0)


def test_too_short_a_recording_is_refused():
    assert len(decode(encoded(tone(440, 8000)[:160], 8000), FORMAT)) == 160
    with pytest.raises(MediaError, match=r"^159 samples at 8000 Hz, shorter than min_seconds=0.02"):
        decode(encoded(tone(440, 8000)[:159], 8000), FORMAT)


def test_a_recording_without_samples_is_refused():
    with pytest.raises(MediaError, match=r"^0 samples at 8000 Hz, shorter than min_seconds"):
        decode(encoded(np.zeros(0, np.float32), 8000), FORMAT)


def test_what_is_no_sound_is_refused_alike_in_every_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = refusal(decode, bytes(range(7, 200)) * 20, FORMAT)
    # The name that libsndfile gives the other half of a Sound Designer II file without a name.
    (tmp_path / "._").write_bytes(bytes(range(256)))
    assert refusal(decode, bytes(range(7, 200)) * 20, FORMAT) == alone
    assert alone == "no sound format that libsndfile knows"


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_chain_is_all_its_recordings_one_after_another(subtype):
    """FFmpeg reads 1.01 of the 2 seconds of two such Opus streams of one serial number."""
    low, high = tone(440, 8000), np.stack([tone(880, 8000, 0.7)] * 2, axis=1)
    first, second = (encoded(one, 8000, format="OGG", subtype=subtype) for one in (low, high))
    fmt = AudioFormat(sample_rate=8000, seconds=5.0)  # their own rate: nothing is resampled
    for chain in ([first, first], [first, second], [second, first, first]):
        expected = np.concatenate([decode(one, fmt) for one in chain])
        assert len(expected) in (16_000, 13_600, 21_600)
        assert np.array_equal(decode(b"".join(chain), fmt), expected)
        # What lies within the first recording is what it was.
        half = AudioFormat(sample_rate=8000, seconds=0.5)
        assert np.array_equal(decode(b"".join(chain), half), decode(chain[0], half))


def test_an_ogg_chain_that_changes_its_rate_or_is_cut_is_refused():
    first = encoded(tone(440, 8000), 8000, format="OGG", subtype="VORBIS")
    other = encoded(tone(440, 16_000), 16_000, format="OGG", subtype="VORBIS")
    fmt = AudioFormat(sample_rate=8000, seconds=3.0)
    reason = "an Ogg chain whose rate changes from 8000 to 16000 Hz; "
    assert refusal(decode, first + other, fmt).startswith(reason)
    assert "cut short" in refusal(decode, (first + first)[:-50], fmt)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    sound = tone(440, 8000)
    sound[7] = value
    with pytest.raises(MediaError, match="not finite"):
        decode(encoded(sound, 8000), FORMAT)


GARBAGE = np.random.default_rng(0).bytes(3300)


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (b"", "a.wav", "the file is empty"),
        (GARBAGE, "a.wav", "no sound format that libsndfile knows"),
        (b"Dear sir,\nno sound here.\n" * 30, "a.wav", "no sound format that libsndfile knows"),
        (GARBAGE, "a.gsm", "not GSM 06.10: a frame lacks its signature"),
        (b"\xd0" * 20, "a.gsm", "not GSM 06.10: a frame lacks its signature"),
        (encoded(tone(440, 8000), 8000), "a.gsm", "not GSM 06.10: a frame lacks its signature"),
    ],
)
def test_what_is_no_sound_is_refused(data, name, reason):
    with pytest.raises(MediaError, match=f"^{reason}$"):
        decode(data, FORMAT, name=name)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_a_truncated_flac_is_refused(share):
    data = encoded(tone(440, 8000), 8000, format="FLAC")
    with pytest.raises(MediaError, match=r"flac decoder lost sync|shorter than min_seconds"):
        decode(data[: int(len(data) * share)], FORMAT)


@pytest.mark.parametrize("kind", [{"format": "OGG"}, {"format": "OGG", "subtype": "OPUS"}])
def test_a_reason_names_no_memory_address(kind):
    data = encoded(tone(440, 8000), 8000, **kind)
    with pytest.raises(MediaError) as caught:
        decode(data[: len(data) // 10], FORMAT, strict=False)
    assert "0x" not in str(caught.value)
    assert "malformed" in str(caught.value)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_truncated_wav_gives_what_there_is_where_that_is_allowed(share):
    data = encoded(tone(440, 8000), 8000)
    whole = decode(data, FORMAT)
    part = decode(data[: int(len(data) * share)], FORMAT, strict=False)
    assert len(part) == pytest.approx(8000 * share, abs=50)
    assert np.array_equal(part, whole[: len(part)])


def test_a_header_may_claim_any_length():
    data = bytearray(encoded(tone(440, 8000, seconds=0.5), 8000, format="WAV", subtype="PCM_16"))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", 0x7FFF_FFF0)
    assert len(decode(bytes(data), FORMAT)) == 4000


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["WAV", "FLAC", "OGG"]))
def test_damage_gives_sound_or_a_reason(data, kind):
    damaged = bytearray(encoded(tone(440, 8000, seconds=0.1), 8000, format=kind))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        sound = decode(bytes(damaged), FORMAT)
    except MediaError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert sound.dtype == np.int16
        assert sound.ndim == 1 and len(sound) <= 8000


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sample_rate": 999}, "sample_rate is 999; must be greater than or equal to 1000"),
        ({"sample_rate": 200_000}, "sample_rate is 200000; must be less than or equal to 192000"),
        ({"seconds": 0.01}, "min_seconds is 0.02; must be at most seconds = 0.01"),
        ({"min_seconds": 0.0}, "min_seconds is 0.0; must be greater than 0"),
        ({"seconds": float("inf")}, "seconds is inf; must be a finite number"),
        ({"encoding": "mp3"}, "encoding is 'mp3'; must be 'raw' or 'flac'"),
        ({"encoding": "flac", "mel": MelFormat()}, "encoding is 'flac' and mel is set"),
        ({"mel": MelFormat(num_mels=200)}, "num_mels is 200; must be lower, or window longer"),
    ],
)
def test_a_format_refuses_what_cannot_be(fields, told):
    with pytest.raises(ValueError, match=told):
        AudioFormat(**fields)


def test_a_format_survives_json():
    fmt = AudioFormat(sample_rate=22_050, seconds=1.5, min_seconds=0.1)
    assert media_to_dict(fmt)["modality"] == "audio"
    assert media_from_dict(media_to_dict(fmt)) == fmt
    assert (fmt.num_samples, fmt.member) == (33_075, "audio.npy")
    mel = AudioFormat(mel=MelFormat(num_mels=32))
    assert media_from_dict(json.loads(json.dumps(media_to_dict(mel)))) == mel


# --- bounds ---


@pytest.mark.parametrize("sample_rate", [8000, 11_025])
def test_an_hour_of_silence_costs_no_more_than_its_beginning(sample_rate):
    fmt = AudioFormat(sample_rate=sample_rate, seconds=1.0)
    hour = encoded(np.zeros(3600 * 8000, np.int16), 8000, format="FLAC")
    assert len(hour) < 200_000
    tracemalloc.start()
    started = time.process_time()
    sound = decode(hour, fmt)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sound) == sample_rate and not sound.any()
    assert seconds < 0.2 and peak < 4_000_000


def test_many_channels_are_mixed_piece_by_piece():
    channels = encoded(np.full((8000, 512), 0.25, np.float32), 8000)
    tracemalloc.start()
    sound = decode(channels * 1, AudioFormat(sample_rate=8000, seconds=1.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert set(np.abs(sound)) == {8192}
    assert peak < len(channels)


@pytest.mark.parametrize("rate", [800_000, 0x7FFF_FFFF])
def test_a_header_may_not_claim_any_rate(rate):
    data = bytearray(encoded(tone(440, 8000), 8000, format="WAV", subtype="PCM_16"))
    data[24:28] = struct.pack("<I", rate)
    with pytest.raises(MediaError, match=f"^its rate is {rate} Hz; it must lie in 1 to 768000$"):
        decode(bytes(data), FORMAT)
