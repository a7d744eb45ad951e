"""Films to clips: which frames are taken, how they are shown, and the sound that goes with them."""

import tracemalloc

import numpy as np
import photos
import pytest
import sounds
from film_files import LEVELS, SMALL, levels, reason
from PIL import Image
from small_media import film, grey_frames, refusal, tone

from pipeline.media import (
    MediaError,
    VideoFormat,
    decode,
    decode_all,
)
from pipeline.media.sandbox.child import _lacked_memory
from pipeline.media.video import film as film_module

# --- which frames ---


def test_a_sample_is_the_frame_shown_at_its_time(two_seconds):
    clip = decode(two_seconds, VideoFormat(num_frames=10, frames_per_second=5, **SMALL))
    assert (clip.dtype, clip.shape) == (np.uint8, (10, 24, 32, 3))
    assert levels(clip) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    clip = decode(two_seconds, VideoFormat(num_frames=8, frames_per_second=8, **SMALL))
    # 25/8 frames apart, never the next one
    assert levels(clip) == [0, 3, 6, 9, 12, 15, 18, 21]


def test_faster_than_the_film_repeats_frames(two_seconds):
    clip = decode(two_seconds, VideoFormat(num_frames=6, frames_per_second=50, **SMALL))
    assert levels(clip) == [0, 0, 1, 1, 2, 2]


def test_frames_of_uneven_length_are_sampled_by_time():
    # A frame that is shown for 0.9 s, then some of 50 ms.
    times = [0, 900, 950, 1000, 1050, 1100]
    data = film(grey_frames(LEVELS[:6]), times=times, container="matroska")
    clip = decode(data, VideoFormat(num_frames=6, frames_per_second=5, **SMALL))
    assert levels(clip) == [0, 0, 0, 0, 0, 3]


def test_time_starts_with_the_first_frame():
    times = [500 + 40 * number for number in range(30)]
    data = film(grey_frames(LEVELS[:30]), times=times, container="matroska")
    clip = decode(data, VideoFormat(num_frames=5, frames_per_second=5, **SMALL))
    assert levels(clip) == [0, 5, 10, 15, 20]


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("mov", "mpeg4"),
        ("matroska", "libx264"),
        ("webm", "libvpx-vp9"),
        ("mpegts", "mpeg2video"),
        ("avi", "mjpeg"),
        ("flv", "flv"),
    ],
)
def test_containers_and_codecs(container, codec):
    pictures = grey_frames(LEVELS[::2])
    data = film(pictures, codec=codec, container=container)
    fmt = VideoFormat(num_frames=5, frames_per_second=5, channels=1, **SMALL)
    first = decode(data, fmt)
    assert levels(first) == pytest.approx([0, 10, 20, 30, 40], abs=1.5)
    assert np.array_equal(decode(data, fmt), first)


def test_an_animated_gif_is_a_film_and_a_still_picture_none():
    frames = [Image.fromarray(frame) for frame in grey_frames([0, 255])]
    gif = {"save_all": True, "append_images": frames[1:], "duration": 500}
    data = photos.encoded(frames[0], "GIF", **gif)
    fmt = VideoFormat(num_frames=4, frames_per_second=4, **SMALL)
    assert decode(data, fmt).mean(axis=(1, 2, 3)).tolist() == [0, 0, 255, 255]
    still = photos.encoded(frames[0], "PNG")
    assert reason(still, fmt).startswith("no film that FFmpeg can read")


# --- clips ---


def clips_of(data: bytes, **fields) -> list[list[int]]:
    fmt = VideoFormat(frames_per_second=5, **SMALL, **fields)
    return [levels(clip) for clip in decode_all(data, fmt)]


def test_a_film_is_cut_into_clips_and_what_remains_is_dropped(two_seconds):
    assert clips_of(two_seconds, num_frames=4, clips="all") == [[0, 5, 10, 15], [20, 25, 30, 35]]
    assert clips_of(two_seconds, num_frames=4) == [[0, 5, 10, 15]]


def test_clips_overlap_or_leave_gaps_by_their_stride(two_seconds):
    overlapping = clips_of(two_seconds, num_frames=4, clips="all", stride_seconds=0.4)
    assert overlapping == [[0, 5, 10, 15], [10, 15, 20, 25], [20, 25, 30, 35], [30, 35, 40, 45]]
    apart = clips_of(two_seconds, num_frames=2, clips="all", stride_seconds=1.2)
    assert apart == [[0, 5], [30, 35]]


def test_a_film_shorter_than_a_clip_is_refused_or_padded(two_seconds):
    fmt = VideoFormat(num_frames=12, frames_per_second=5, clips="all", **SMALL)
    assert reason(two_seconds, fmt) == (
        "2.000 s long, shorter than a clip of 2.400 s (set pad_short: true to repeat its last "
        "frame)"
    )
    (clip,) = clips_of(two_seconds, num_frames=12, clips="all", pad_short=True)
    assert clip == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 45, 45]
    # Whole clips need no padding, nor does what remains after them get any.
    assert len(clips_of(two_seconds, num_frames=4, clips="all", pad_short=True)) == 2


def test_a_long_film_takes_the_memory_of_a_clip():
    data = film(grey_frames([10, 200] * 300, 16, 16), fps=10)
    fmt = VideoFormat(
        num_frames=10, frames_per_second=10, height=128, width=128, clips="all", stride_seconds=0.5
    )
    clip_bytes = 10 * 128 * 128 * 3
    tracemalloc.start()
    count = 0
    for _ in decode_all(data, fmt):
        count += 1
        if count == 10:
            tracemalloc.reset_peak()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 119
    assert peak < 4 * clip_bytes


# --- what is refused ---


def test_malformed_films_are_refused_in_one_line(two_seconds):
    fmt = VideoFormat(num_frames=40, frames_per_second=20, **SMALL)
    assert reason(b"", fmt) == "the file is empty"
    unreadable = "no film that FFmpeg can read: Invalid data found when processing input"
    assert reason(b"no film", fmt) == unreadable
    assert reason(bytes(5000), fmt) == unreadable
    for share in (0.01, 0.3, 0.6, 0.9):
        cut = two_seconds[: int(share * len(two_seconds))]
        assert reason(cut, fmt) == reason(cut, fmt)


def test_a_film_cut_short_is_refused_though_its_start_is_whole():
    data = film(grey_frames([10, 200] * 100), fps=20, container="matroska")
    fmt = VideoFormat(num_frames=4, frames_per_second=4, clips="all", **SMALL)
    assert len(list(decode_all(data, fmt))) == 10
    made = []
    with pytest.raises(MediaError, match=r"cut short|damaged"):
        made.extend(decode_all(data[: len(data) // 2], fmt, strict=False))
    assert 0 < len(made) < 10
    told = refusal(decode, data[: len(data) // 2], fmt)
    assert told == f"cut short: {len(data) // 2} of {len(data)} bytes are there"


def with_false_size(ivf: bytes, number: int) -> bytes:
    """IVF whose packet of this number claims nearly all that 32 bits can tell."""
    data, place = bytearray(ivf), 32
    for _ in range(number):
        place += 12 + int.from_bytes(ivf[place : place + 4], "little")
    data[place : place + 4] = b"\xf8\x00\xfe\xff"
    return bytes(data)


@pytest.mark.parametrize("number", [0, 49])
def test_a_packet_with_a_false_size_is_damage_and_no_lack_of_memory(number, monkeypatch):
    data = with_false_size(film(grey_frames(LEVELS), codec="libvpx", container="ivf"), number)
    fmt = VideoFormat(num_frames=50, frames_per_second=25, **SMALL)
    with pytest.raises(MediaError) as caught:
        decode(data, fmt)
    assert str(caught.value) == (
        f"damaged {number / 25:.3f} s after its start: a packet claims more bytes than the film has"
    )
    assert not _lacked_memory(caught.value)
    monkeypatch.setattr(film_module, "_is_free", lambda num_bytes: False)
    with pytest.raises(MediaError, match=r"^not enough memory to decode it$") as caught:
        decode(data, fmt)
    assert _lacked_memory(caught.value)


def test_sound_alone_is_no_film():
    sound = sounds.encoded(tone(1, 8000), 8000, format="OGG", subtype="VORBIS")
    assert reason(sound, VideoFormat(num_frames=1, **SMALL)) == "it has no video track"


def test_playlists_are_not_followed(tmp_path, two_seconds):
    (tmp_path / "a.ts").write_bytes(film(grey_frames(LEVELS), container="mpegts"))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{tmp_path}/a.ts\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile {tmp_path}/a.ts\n"
    for text in (playlist, concat):
        told = reason(text.encode(), VideoFormat(num_frames=1, **SMALL))
        assert told.startswith("no film that FFmpeg can read")


def test_large_frames_and_long_films_are_refused(two_seconds):
    small = VideoFormat(num_frames=1, max_pixels=64 * 48 - 1, **SMALL)
    reason(two_seconds, small)
    assert len(decode(two_seconds, VideoFormat(num_frames=1, max_pixels=64 * 48, **SMALL))) == 1
    brief = {"num_frames": 5, "frames_per_second": 5, "max_seconds": 1.9, **SMALL}
    assert reason(two_seconds, VideoFormat(clips="all", **brief)) == (
        "2.0 s long, more than max_seconds=1.9"
    )
    assert len(decode(two_seconds, VideoFormat(**brief))) == 5


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_frames": 0}, "num_frames is 0; must be greater than or equal to 1"),
        (
            {"frames_per_second": 0.0},
            "frames_per_second is 0.0; must be greater than or equal to 0.001",
        ),
        ({"frames_per_second": float("nan")}, "frames_per_second is nan"),
        ({"channels": 2}, "channels is 2; must be 1 or 3"),
        ({"resize": "zoom"}, "resize is 'zoom'; must be 'crop', 'pad' or 'stretch'"),
        ({"clips": "some"}, "clips is 'some'; must be 'first' or 'all'"),
        ({"stride_seconds": 1.0}, "stride_seconds is 1.0, but clips is 'first'"),
        ({"stride_seconds": 0.01, "clips": "all"}, "; must be at least 0.125"),
        ({"max_seconds": 0.2}, "max_seconds is 0.2; a clip alone lasts 0.5"),
    ],
)
def test_formats_that_cannot_be_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        VideoFormat(**{"num_frames": 4, **SMALL, **fields})


def test_matroska_that_starts_late_is_whole():
    times = [5000 + 40 * n for n in range(50)]
    data = film(grey_frames(range(0, 250, 5)), times=times, container="matroska")
    fmt = VideoFormat(num_frames=5, frames_per_second=5, clips="all", **SMALL)
    assert len(list(decode_all(data, fmt))) == 2


def test_joined_films_whose_clock_starts_anew_are_refused_there():
    one = film(grey_frames([10, 200] * 25), container="mpegts")
    fmt = VideoFormat(num_frames=5, frames_per_second=5, clips="all", **SMALL)
    made = []
    with pytest.raises(MediaError, match=r"its clock jumps back 1\.9"):
        made.extend(decode_all(one + one, fmt, strict=False))
    assert made
    assert "Packet corrupt" in refusal(lambda: list(decode_all(one + one, fmt)))
