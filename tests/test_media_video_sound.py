"""The sound of a film's clips."""

import io

import av
import numpy as np
import pytest
import sounds
import soxr
from film_files import LEVELS, SMALL, reason
from small_media import film, grey_frames, refusal, tone

from pipeline.media import (
    AudioFormat,
    VideoFormat,
    decode,
    decode_film,
)

AUDIO = AudioFormat(sample_rate=16_000, seconds=0.5)


@pytest.mark.parametrize("container", ["matroska", "mp4"])
@pytest.mark.parametrize("tracks_apart", [False, True])
def test_each_clip_has_the_sound_of_its_span(container, tracks_apart):
    rate = 48_000
    sound = np.concatenate([tone(0.5, rate, hertz) for hertz in (500, 1000, 2000, 4000)])
    data = film(grey_frames(LEVELS), container=container, sound=sound, tracks_apart=tracks_apart)
    fmt = VideoFormat(num_frames=4, frames_per_second=8, clips="all", **SMALL)
    heard = []
    for _, spoken in decode_film(data, fmt, AUDIO):
        assert (spoken.dtype, len(spoken)) == (np.int16, 8000)
        middle = spoken[2000:6000].astype(float)
        heard.append(4 * int(np.abs(np.fft.rfft(middle)).argmax()))
        assert np.abs(middle).max() == pytest.approx(16384, rel=0.1)
    assert heard == [500, 1000, 2000, 4000]


def test_sound_of_a_film_is_what_the_same_sound_is_alone():
    sound = np.random.default_rng(0).normal(0, 0.2, 48_000)
    data = film(grey_frames(LEVELS), container="matroska", sound=sound)
    fmt = VideoFormat(num_frames=4, frames_per_second=8, **SMALL)
    ((_, spoken),) = decode_film(data, fmt, AUDIO)
    whole = np.rint(np.clip(sound.astype(np.float32), -1, 1) * 32767).astype(np.int16)
    alone = sounds.encoded(np.stack([whole, whole], 1), 48_000, format="WAV", subtype="PCM_16")
    assert np.abs(spoken.astype(int) - decode(alone, AUDIO).astype(int)).max() <= 1


@pytest.mark.parametrize("rate", [11_025, 44_100, 48_000])
def test_the_sound_of_every_clip_is_cut_from_the_whole_resampled(rate):
    noise = np.random.default_rng(0).normal(0, 0.2, 2 * rate)
    data = film(grey_frames(LEVELS), container="matroska", sound=noise, sound_rate=rate)
    stored = np.rint(noise.astype(np.float32) * 32767).astype(np.int16)
    whole = np.rint(32768 * soxr.resample(stored / np.float32(32768), rate, 16_000))
    # A fifth of a second is a whole number of samples at every one of these rates.
    fmt = VideoFormat(num_frames=5, frames_per_second=25, clips="all", stride_seconds=0.2, **SMALL)
    spoken = [sound for _, sound in decode_film(data, fmt, AUDIO)]
    assert len(spoken) == 10
    for number, sound in enumerate(spoken):
        wanted = whole[3200 * number : 3200 * number + 8000]
        assert len(sound) == len(wanted)
        assert np.abs(sound - wanted).max() <= 1


def test_a_clip_without_sound_may_be_refused_and_is_told_where_the_sound_ends(two_seconds):
    fmt = VideoFormat(num_frames=4, frames_per_second=8, clips="all", **SMALL)
    data = film(grey_frames(LEVELS), container="matroska", sound=tone(0.75, 48_000))
    made = []
    allow = "(list audio in data.allow_missing to keep clips without it)"
    told = refusal(lambda: made.extend(decode_film(data, fmt, AUDIO, needs_sound=True)))
    assert told == (
        "its sound ends at 0.750 s, so a clip has less than min_seconds=0.02 of it from 1.000 s to "
        f"1.500 s {allow}"
    )
    assert [len(sound) for _, sound in made] == [8000, 4000]
    told = refusal(lambda: list(decode_film(two_seconds, fmt, AUDIO, needs_sound=True)))
    assert told == f"the film has no sound track {allow}"


def test_sound_that_starts_late_is_silent_before_and_one_that_ends_early_is_shorter():
    data = film(
        grey_frames(LEVELS), container="matroska", sound=tone(0.5, 48_000), sound_start=0.75
    )
    fmt = VideoFormat(num_frames=4, frames_per_second=8, clips="all", **SMALL)
    spoken = [sound for _, sound in decode_film(data, fmt, AUDIO)]
    assert [None if sound is None else len(sound) for sound in spoken] == [8000, 8000, 4000, None]
    assert not spoken[0].any()
    assert not spoken[1][:3900].any() and np.abs(spoken[1][4100:]).max() > 10_000


def spoiled(mp4: bytes, numbers: range) -> bytes:
    """An MP4 whose packets of sound with these numbers are overwritten."""
    data = bytearray(mp4)
    with av.open(io.BytesIO(mp4)) as container:
        for number, packet in enumerate(container.demux(audio=0)):
            if number in numbers:
                data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    return bytes(data)


def test_sound_may_begin_within_a_packet_but_not_break_off_within_one():
    data = film(grey_frames(LEVELS), sound=tone(2, 48_000))
    fmt = VideoFormat(num_frames=4, frames_per_second=8, clips="all", **SMALL)
    assert reason(spoiled(data, range(5)), fmt, AUDIO).startswith("damaged 0.000 s after its start")
    film_of_four = decode_film(spoiled(data, range(5)), fmt, AUDIO, strict=False)
    spoken = [sound for _, sound in film_of_four]
    assert [len(sound) for sound in spoken] == [8000] * 4
    assert not spoken[0][:1000].any() and np.abs(spoken[0][4000:]).max() > 10_000
    told = reason(spoiled(data, range(40, 45)), fmt, AUDIO)
    assert told.startswith("damaged 0.") and told.endswith("s after its start")


def test_a_film_without_sound_has_none(two_seconds):
    fmt = VideoFormat(num_frames=4, frames_per_second=8, clips="all", **SMALL)
    assert [sound for _, sound in decode_film(two_seconds, fmt, AUDIO)] == [None] * 4
