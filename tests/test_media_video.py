"""Films to clips: which frames are taken, how they are shown, and the sound that goes with them."""

import io
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import photos
import pytest
import sounds
import soxr
from PIL import Image
from small_media import film, grey_frames, refusal, tone, turned, with_matrix

from pipeline.media import (
    AudioFormat,
    ImageFormat,
    MediaError,
    VideoFormat,
    decode,
    decode_all,
    decode_film,
)
from pipeline.media.sandbox.child import _lacked_memory
from pipeline.media.video import film as film_module

SMALL = {"height": 24, "width": 32}
LEVELS = range(20, 220, 4)
"""Of the 50 frames of two seconds at 25 frames a second."""


@pytest.fixture(scope="module")
def two_seconds() -> bytes:
    return film(grey_frames(LEVELS))


def levels(clip: np.ndarray) -> list[int]:
    """Which frame of LEVELS each frame of a clip shows."""
    return [round((int(frame.mean().round()) - 20) / 4) for frame in clip]


def reason(data: bytes, fmt: VideoFormat, audio: AudioFormat | None = None) -> str:
    return refusal(lambda: list(decode_film(data, fmt, audio)))


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


# --- how frames are shown ---


def quarters() -> np.ndarray:
    """Red, green / blue, white."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32, 0] = picture[:24, 32:, 1] = picture[24:, :32, 2] = 250
    picture[24:, 32:] = 250
    return picture


def colours(frame: np.ndarray) -> str:
    """The letters of the corners, row by row."""
    rows, columns = frame.shape[0] // 4, frame.shape[1] // 4
    picked = [frame[y, x] > 125 for y in (rows, 3 * rows) for x in (columns, 3 * columns)]
    names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w", (0, 0, 0): "."}
    return "".join(names[tuple(map(int, corner))] for corner in picked)


@pytest.mark.parametrize(("turns", "shown"), [(0, "rgbw"), (1, "brwg"), (2, "wbgr"), (3, "gwrb")])
def test_rotation_in_the_header_is_applied(turns, shown):
    data = film([quarters()] * 5)
    data = turned(data, turns) if turns else data
    fmt = VideoFormat(num_frames=1, height=32, width=32, resize="stretch")
    assert colours(decode(data, fmt)[0]) == shown


def test_pixels_that_are_not_square_are_shown_square():
    # 64 × 48 pixels that are half as wide as high: a picture of 32 × 48.
    data = film([quarters()] * 5, aspect=Fraction(1, 2), container="matroska")
    fmt = VideoFormat(num_frames=1, height=48, width=64, resize="pad")
    (clip,) = decode(data, fmt)
    filled = np.flatnonzero(clip.max(axis=(0, 2)) > 40)
    assert (filled[0], filled[-1]) == (16, 47)


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_frames_are_resized_as_images_are(resize, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC))
    size = {"height": 20, "width": 40, "resize": resize, "channels": channels}
    (clip,) = decode(film([picture] * 3), VideoFormat(num_frames=1, **size))
    image = decode(photos.encoded(Image.fromarray(picture), "PNG"), ImageFormat(**size))
    # What the encoder loses, colour at half the resolution above all, is all that differs.
    assert np.abs(clip.astype(int) - image.astype(int)).mean() < 5


def see_through(codec: str) -> bytes:
    """WebM of a red frame whose left half is 0, 50, 100 … opaque and whose right half half so."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as output:
        video = output.add_stream(codec, rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuva420p"
        video.options = {"auto-alt-ref": "0", "deadline": "realtime", "crf": "4"}
        for number in range(5):
            pixels = np.zeros((48, 64, 4), np.uint8)
            pixels[..., 0], pixels[:, :32, 3], pixels[:, 32:, 3] = 200, 50 * number, 128
            frame = av.VideoFrame.from_ndarray(pixels, "rgba").reformat(format="yuva420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_alpha_beside_the_frames_of_webm_is_laid_over_white(codec):
    fmt = VideoFormat(num_frames=5, frames_per_second=25, height=48, width=64)
    for number, frame in enumerate(decode(see_through(codec), fmt)):
        share = 50 * number / 255
        left = [200 * share + 255 * (1 - share), *[255 * (1 - share)] * 2]
        assert frame[24, 16] == pytest.approx(left, abs=6)
        assert frame[24, 48] == pytest.approx([227, 127, 127], abs=6)


def test_alpha_that_ffmpeg_cannot_read_is_refused(monkeypatch):
    data = see_through("libvpx-vp9")
    monkeypatch.setattr(film_module, "LIBVPX", {"vp9": "libvpx-of-another-build"})
    told = reason(data, VideoFormat(num_frames=1, **SMALL))
    assert told.startswith("an alpha channel, which this FFmpeg cannot read without libvpx-of-")


# --- sound ---

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


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
        ((1, 0, 0, -1), lambda p: p[::-1]),
        ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    ],
)
def test_mirroring_in_the_header_is_applied(matrix, turn):
    fmt = VideoFormat(num_frames=1, height=32, width=32, resize="stretch")
    plain = film([quarters()] * 5)
    shown = decode(with_matrix(plain, *matrix), fmt)[0]
    wanted = turn(decode(plain, fmt)[0])
    assert np.abs(shown.astype(int) - wanted)[4:12, 4:12].max() < 8
    assert np.abs(shown.astype(int) - wanted)[20:28, 4:12].max() < 8


def test_the_containers_shape_of_pixels_counts_where_the_codec_has_none():
    data = film([quarters()] * 5, aspect=Fraction(1, 2), codec="libvpx-vp9")
    (clip,) = decode(data, VideoFormat(num_frames=1, height=48, width=64, resize="pad"))
    filled = np.flatnonzero(clip.max(axis=(0, 2)) > 40)
    assert (filled[0], filled[-1]) == (16, 47)


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
