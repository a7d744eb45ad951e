"""Films that are cut short, or whose damage FFmpeg conceals."""

import io

import av
import numpy as np
import pytest
from small_media import film, refusal, tone

from pipeline.media import AudioFormat, MediaError, VideoFormat, decode, decode_film

FORMAT = VideoFormat(num_frames=4, height=24, width=32, frames_per_second=8, clips="all")
RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:48, :64]
FRAMES = [
    np.clip(
        np.stack([COLUMNS * 3 + 4 * k, ROWS * 4 - k, 255 - COLUMNS * 2], -1)
        + RNG.normal(0, 9, (48, 64, 3)),
        0,
        255,
    ).astype(np.uint8)
    for k in range(30)
]
KINDS = [
    ("libx264", "mp4"), ("libx264", "matroska"), ("libx264", "mpegts"), ("libx264", "flv"),
    ("mpeg4", "avi"), ("mpeg4", "mp4"), ("flv1", "flv"), ("libvpx", "webm"), ("libvpx", "ivf"),
    ("mpeg2video", "mpeg"), ("wmv2", "asf"), ("ffv1", "matroska"), ("mjpeg", "mov"),
]  # fmt: skip


@pytest.fixture(scope="module")
def films() -> dict[tuple[str, str], bytes]:
    return {kind: film(FRAMES, codec=kind[0], container=kind[1]) for kind in KINDS}


def clips(data: bytes, **options) -> list[np.ndarray]:
    return [clip for clip, _ in decode_film(data, FORMAT, None, **options)]


def told(data: bytes, audio: AudioFormat | None = None) -> str:
    return refusal(lambda: list(decode_film(data, FORMAT, audio)))


def garbled(data: bytes, share: float, num_bytes: int = 30) -> bytes:
    start = int(share * len(data))
    piece = bytes(byte ^ 0x55 for byte in data[start : start + num_bytes])
    return data[:start] + piece + data[start + num_bytes :]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_whole_films_give_the_same_clips_strict_or_not(kind, films):
    strict, lenient = clips(films[kind]), clips(films[kind], strict=False)
    assert len(strict) >= 2 and np.array_equal(strict, lenient)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
def test_a_film_whose_container_ends_early_is_refused(kind, share, films):
    data = films[kind]
    assert told(data[: int(share * len(data))]).startswith(("cut short", "damaged"))


def test_the_reason_says_how_many_bytes_are_there(films):
    for kind in (("libx264", "matroska"), ("mpeg4", "avi"), ("wmv2", "asf"), ("mjpeg", "mov")):
        data = films[kind]
        end = len(data) - 300
        assert told(data[:end]) == f"cut short: {end} of {len(data)} bytes are there"
    program = films["mpeg2video", "mpeg"].removesuffix(b"\0\0\1\xb9")
    assert told(program[:-50]).startswith("cut short: its last packet lacks")
    transport = films["libx264", "mpegts"]
    assert told(transport[:-100]) == "cut short: its last packet has 88 of 188 bytes"


@pytest.mark.parametrize(
    "kind", [("mpeg4", "mp4"), ("flv1", "flv"), ("ffv1", "matroska")], ids="-".join
)
def test_damage_that_ffmpeg_conceals_is_refused(kind, films):
    data, refused = films[kind], 0
    for share in (0.3, 0.4, 0.5, 0.6, 0.7):
        damaged = garbled(data, share)
        try:
            clips(damaged)
        except ValueError as error:
            assert str(error).startswith(("damaged", "cut short"))
            refused += 1
    assert refused >= 4


def test_damaged_sound_of_a_film_is_refused():
    data = film(FRAMES, sound=tone(2, 48_000))
    audio = AudioFormat(sample_rate=16_000, seconds=0.5)
    assert len(list(decode_film(data, FORMAT, audio))) >= 2
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
    damaged = bytearray(data)
    for packet in packets[10:14]:
        damaged[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    assert told(bytes(damaged), audio).startswith("damaged 0.")


class _Pipe:
    """A file that cannot be sought, as a stream's."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, piece: bytes) -> int:
        self.content += bytes(piece)
        return len(piece)


@pytest.mark.parametrize(("container", "options"), [
    ("matroska", {}), ("webm", {}), ("avi", {}), ("flv", {}), ("asf", {}),
    ("mp4", {"movflags": "frag_keyframe+empty_moov"}), ("yuv4mpegpipe", {}),
])  # fmt: skip
def test_films_of_unknown_length_as_pipes_have_them_are_read(container, options):
    codec = {"webm": "libvpx", "yuv4mpegpipe": "wrapped_avframe"}.get(container, "mpeg4")
    codec = {"flv": "flv1", "asf": "wmv2"}.get(container, codec)
    pipe = _Pipe()
    with av.open(pipe, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in FRAMES:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    assert len(clips(bytes(pipe.content))) >= 2


def test_what_follows_a_films_last_box_is_no_matter(films):
    data = films["libx264", "mp4"]
    for tail in (b"\0\0\0\x08free", bytes(512), b"TAG" + bytes(125)):
        assert np.array_equal(clips(data + tail), clips(data))


def test_ffmpegs_log_is_left_as_it_was(films):
    before = av.logging.get_level()
    told(garbled(films["mpeg4", "mp4"], 0.5))
    decode(films["mpeg4", "mp4"], FORMAT)
    assert av.logging.get_level() == before


def test_one_films_complaints_are_not_anothers(films):
    data = films["flv1", "flv"]
    for _ in range(3):
        assert "FFmpeg says: " in told(garbled(data, 0.5))
        assert len(clips(data)) >= 2


def test_two_films_that_are_read_in_turn_keep_their_complaints_apart(films):
    whole, damaged = films["flv1", "flv"], garbled(films["flv1", "flv"], 0.5)
    one, other = decode_film(whole, FORMAT, None), decode_film(damaged, FORMAT, None)
    made = [next(one)]
    with pytest.raises(MediaError, match="FFmpeg says"):
        list(other)
    made += one
    assert len(made) == len(clips(whole))
