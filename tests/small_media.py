"""Small media that tests make with real encoders, and why media are refused."""

import io
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from pipeline.media import MediaError


def grey_frames(levels: Iterable[int], height: int = 48, width: int = 64) -> list[np.ndarray]:
    """One frame of each grey level, uint8 `[height, width, 3]`."""
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def film(
    frames: Sequence[np.ndarray],
    *,
    fps: int = 25,
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    container: str = "mp4",
    sound: np.ndarray | None = None,
    sound_rate: int = 48_000,
    sound_start: float = 0.0,
    aspect: Fraction | None = None,
    tracks_apart: bool = False,
) -> bytes:
    """An encoded film of frames `[height, width, 3]`; its colours are near what was given.

    Args:
        times: of the frames, in milliseconds; evenly by `fps` where None.
        sound: float `[samples]` in [-1, 1], stored as PCM or, in MP4, as AAC in stereo.
        tracks_apart: all frames first and then all sound, as a careless muxer might.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        video = output.add_stream(codec, rate=fps)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.time_base = Fraction(1, 1000)
        video.bit_rate = 4_000_000
        if codec == "libx264":
            video.options = {"crf": "4", "preset": "ultrafast", "threads": "1"}
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
        audio = None
        if sound is not None:
            kind = "aac" if container == "mp4" else "pcm_s16le"
            audio = output.add_stream(kind, rate=sound_rate, layout="stereo")
        packets = _frame_packets(video, frames, times, fps)
        heard = [] if audio is None else _sound_packets(audio, sound, sound_rate, sound_start)
        ordered = [*packets, *heard]
        if not tracks_apart:
            ordered.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in ordered:
            output.mux(packet)
    return buffer.getvalue()


def _frame_packets(stream, frames, times, fps):
    packets = []
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
        frame.pts = times[number] if times is not None else round(1000 * number / fps)
        frame.time_base = Fraction(1, 1000)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _sound_packets(stream, sound, rate, start):
    packets = []
    for place in range(0, len(sound), 1024):
        piece = sound[place : place + 1024].astype(np.float32)
        if stream.codec_context.name == "aac":
            frame = av.AudioFrame.from_ndarray(np.stack([piece, piece]), "fltp", "stereo")
        else:
            whole = np.repeat(np.rint(piece * 32767).astype(np.int16), 2)
            frame = av.AudioFrame.from_ndarray(whole[None], "s16", "stereo")
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round(start * rate) + place
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def turned(mp4: bytes, quarter_turns: int) -> bytes:
    """An MP4 whose header says to show it turned clockwise, as telephones write it."""
    matrices = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}
    return with_matrix(mp4, *matrices[quarter_turns])


def with_matrix(mp4: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 of one track with this display matrix (ISO 14496-12, 8.3.2)."""
    words = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    place = mp4.index(b"tkhd") + 44
    return mp4[:place] + words + mp4[place + 36 :]


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    """A sine of half the full scale."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def refusal(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The one line with which the call refuses its media."""
    with pytest.raises(MediaError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
