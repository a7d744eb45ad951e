"""Decode films with PyAV: clips of frames at one rate and size, and the sound of each clip."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import numpy as np

from pipeline.media.audio.decode import AudioFormat, to_format
from pipeline.media.audio.sample_rate import margins, num_source_samples, resample_within
from pipeline.media.errors import MediaError
from pipeline.media.image.decode import fit_pixels
from pipeline.media.video.film import Track, open_track
from pipeline.media.video.film_files import check_whole_film
from pipeline.media.video.film_log import ffmpeg_messages
from pipeline.media.video.format import VideoFormat
from pipeline.media.video.soundtrack import Soundtrack

__all__ = ["VideoFormat", "decode_clips", "decode_film"]

DETAIL = 2.0
"""A large frame is first reduced to this many times the target size along each side. The rest is
left to the resizing filter, as for large JPEGs."""

CUT_SHORT_SECONDS = 1
"""How much earlier than declared a track may end, because muxers round and drop last frames."""


def decode_clips(data: bytes, fmt: VideoFormat, *, strict: bool = True) -> Iterator[np.ndarray]:
    """Decode a film's clips, in order, like `decode_film` without the sound.

    Yields:
        uint8 `[num_frames, height, width, channels]`.
    """
    for clip, _ in decode_film(data, fmt, None, strict=strict):
        yield clip


def decode_film(
    data: bytes,
    video: VideoFormat,
    audio: AudioFormat | None,
    *,
    needs_sound: bool = False,
    strict: bool = True,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Decode a film's clips and their sound, with the memory of one clip.

    The film is sampled `video.frames_per_second` times a second, starting at its first frame. A
    sample is the frame that is shown at that time, also if the frame rate varies. Rotation and the
    pixel aspect ratio are applied, and transparent pixels are blended with white. A clip starts
    every `video.stride_frames` samples. The last frame is shown for its own duration, or for as
    long as the previous frame.

    Args:
        data: The bytes of the file: MP4, QuickTime, Matroska, WebM, AVI, MPEG, Ogg, FLV, ASF, an
            animated GIF, or another container in `CONTAINERS`.
        video: The format of the clips.
        audio: The format of the sound, which begins with a clip and is `audio.seconds` long; None
            for no sound. Apart from float32 rounding, the result is the same as if the whole sound
            track was resampled and then cut.
        needs_sound: Whether to reject a clip without sound.
        strict: Whether to also reject a film that is cut short, or whose damage FFmpeg conceals.

    Yields:
        The clip, uint8 `[num_frames, height, width, channels]`, and its sound, int16 `[samples]`,
        at most `audio.num_samples`. The sound is None if the film has none, or if it ends before
        `audio.min_seconds` of the clip's span.

    Raises:
        MediaError: The file is not a film, is shorter than a clip, is damaged, or exceeds
            `max_pixels` or `max_seconds`. If only a later part is damaged, the first clips are
            yielded before the error.
    """
    if not data:
        raise MediaError("the file is empty")
    if strict:
        check_whole_film(data)
    with ExitStack() as stack:
        stack.enter_context(ffmpeg_messages(strict))
        track = stack.enter_context(
            open_track(data, "video", max_pixels=video.max_pixels, strict=strict)
        )
        if track is None:
            raise MediaError("it has no video track")
        sound = None
        if audio is not None:
            # A separate reader: a shared one would buffer the data between the two tracks.
            heard = stack.enter_context(
                open_track(data, "audio", max_pixels=video.max_pixels, strict=strict)
            )
            sound = None if heard is None else Soundtrack(heard)
        begin: Fraction | None = None
        for start, clip in _clips(track, video):
            begin = start if begin is None else begin
            spoken = None
            if audio is not None and sound is not None and sound.rate:
                assert heard is not None
                spoken = _spoken(sound, start, audio, has_begun=heard.begin < start)
            if audio is not None and needs_sound and spoken is None:
                end = heard.end - begin if heard and sound and sound.rate else None
                raise MediaError(_without_sound(start - begin, end, audio))
            yield clip, spoken


def _spoken(
    sound: Soundtrack, start: Fraction, fmt: AudioFormat, *, has_begun: bool
) -> np.ndarray | None:
    """Return the sound from a time on in its format, or None if too little of it is left."""
    rate = sound.rate
    before, behind = margins(rate, fmt.sample_rate)
    lead = before if has_begun else 0
    needed = num_source_samples(fmt.num_samples, rate, fmt.sample_rate)
    first = round(start * rate) - lead
    read = sound.read(Fraction(first, rate), (lead + needed + behind) / rate)
    left = len(read) - lead
    if left <= 0 or (left < needed and left < fmt.min_seconds * rate):
        return None
    part = resample_within(read, rate, fmt.sample_rate, lead=lead, count=fmt.num_samples)
    return to_format(part, fmt)


def _without_sound(start: Fraction, end: Fraction | None, fmt: AudioFormat) -> str:
    """Explain why a clip has no sound. Both times are relative to the first frame."""
    allow = "list audio in data.allow_missing to keep clips without it"
    if end is None:
        return f"the film has no sound track ({allow})"
    stop = float(start) + fmt.seconds
    return (
        f"its sound ends at {float(end):.3f} s, so a clip has less than min_seconds="
        f"{fmt.min_seconds} of it from {float(start):.3f} s to {stop:.3f} s ({allow})"
    )


def _clips(track: Track, fmt: VideoFormat) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Yield clips with their start, in seconds of the film's clock."""
    clip = np.empty(fmt.shape, np.uint8)
    first, filled, num_clips = 0, 0, 0
    begin = Fraction(0)
    for number, time, pixels in _samples(track, fmt):
        if number == 0:
            begin = time
        if number < first:
            continue
        clip[filled] = pixels()
        filled += 1
        if filled < fmt.num_frames:
            continue
        yield begin + first / fmt.rate, clip
        num_clips += 1
        if fmt.clips == "first":
            return
        first += fmt.stride_frames
        num_overlapping = max(0, fmt.num_frames - fmt.stride_frames)
        before, clip = clip, np.empty(fmt.shape, np.uint8)
        clip[:num_overlapping] = before[fmt.num_frames - num_overlapping :]
        del before
        filled = num_overlapping
    _check_whole(track, begin, fmt)
    if num_clips:
        return
    if not filled:
        raise MediaError("its video track has no frames")
    if not fmt.pad_short:
        raise MediaError(
            f"{float(track.end - begin):.3f} s long, shorter than a clip of "
            f"{float(fmt.seconds):.3f} s (set pad_short: true to repeat its last frame)"
        )
    clip[filled:] = clip[filled - 1]
    yield begin, clip


def _check_whole(track: Track, begin: Fraction, fmt: VideoFormat) -> None:
    """Reject a film that ends long before the end that its container declares."""
    declared = track.declared_seconds
    if declared is not None and track.end - begin < declared - CUT_SHORT_SECONDS:
        raise MediaError(
            f"cut short: {float(track.end - begin):.3f} s of {float(declared):.3f} s are there"
        )


def _samples(track: Track, fmt: VideoFormat) -> Iterator[tuple[int, Fraction, Any]]:
    """Yield the number of each sample, the film's first time, and a function for its pixels."""
    declared = track.declared_seconds
    if fmt.clips == "all" and declared is not None:
        _check_length(declared, fmt)
    number = 0
    begin: Fraction | None = None
    shown: _Picture | None = None
    for time, frame in track.frames():
        if frame.is_corrupt:
            if begin is None:
                continue  # a recording may begin between two key frames
            raise MediaError(f"damaged {float(time - begin):.3f} s after its start")
        if begin is None:
            begin = time
        _check_length(time - begin, fmt)
        while shown is not None and begin + number / fmt.rate < time:
            yield number, begin, shown.pixels
            number += 1
        shown = _Picture(frame, track.pixel_aspect, fmt)
    if begin is None or shown is None:
        return
    _check_length(track.end - begin, fmt)
    while begin + number / fmt.rate < track.end:
        yield number, begin, shown.pixels
        number += 1


def _check_length(seconds: Fraction, fmt: VideoFormat) -> None:
    if seconds > fmt.max_seconds:
        raise MediaError(f"{float(seconds):.1f} s long, more than max_seconds={fmt.max_seconds}")


class _Picture:
    """A frame whose pixels are converted when they are first requested."""

    def __init__(self, frame: Any, aspect: Fraction | None, fmt: VideoFormat) -> None:
        self._frame, self._aspect, self._fmt = frame, aspect, fmt
        self._pixels: np.ndarray | None = None

    def pixels(self) -> np.ndarray:
        """Return the pixels, uint8 `[height, width, channels]`."""
        if self._pixels is None:
            self._pixels = _pixels(self._frame, self._aspect, self._fmt)
            self._frame = None
        return self._pixels


def _pixels(frame: Any, aspect: Fraction | None, fmt: VideoFormat) -> np.ndarray:
    from PIL import Image

    if frame.width * frame.height > fmt.max_pixels:
        raise MediaError(
            f"{frame.width}x{frame.height} pixels, more than max_pixels={fmt.max_pixels}"
        )
    height, width = float(frame.height), float(frame.width)
    if aspect and Fraction(1, 8) <= aspect <= 8:
        width *= float(aspect)
    across, down = _orientation(frame)
    if across[0] == 0:
        height, width = width, height
    share = DETAIL * max(fmt.height / height, fmt.width / width)
    pixels = _rgb(frame, min(1.0, share))
    if fmt.channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    if across[0] == 0:
        pixels = pixels.swapaxes(0, 1)
    pixels = pixels[:: min(down) or 1, :: min(across) or 1]
    return fit_pixels(pixels, fmt, height, width)


def _orientation(frame: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return how the shown x and y follow from the stored x and y: quarter turns and mirroring.

    This is FFmpeg's display matrix, rounded to quarter turns (libavutil/display.h). Its first
    column makes x, its second y.
    """
    from av.sidedata.sidedata import Type

    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return (1, 0), (0, 1)
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        return (-1 if a < 0 else 1, 0), (0, -1 if d < 0 else 1)
    return (0, -1 if c < 0 else 1), (-1 if b < 0 else 1, 0)


def _rgb(frame: Any, share: float) -> np.ndarray:
    """Convert a frame of any pixel format to RGB with FFmpeg's exact code.

    Args:
        frame: PyAV's frame.
        share: The size of the result as a share of the frame's height and width.

    Returns:
        uint8 `[rows, columns, 3]`.
    """
    from av.video.reformatter import Interpolation

    exact = (
        Interpolation.BILINEAR
        | Interpolation.FULL_CHR_H_INT
        | Interpolation.ACCURATE_RND
        | Interpolation.BITEXACT
    )
    alpha = any(component.is_alpha for component in frame.format.components)
    layout = "rgba" if alpha or frame.format.name == "pal8" else "rgb24"
    pixels = frame.to_ndarray(
        format=layout,
        height=math.ceil(frame.height * share),
        width=math.ceil(frame.width * share),
        interpolation=exact,
        threads=1,
    )
    if layout == "rgb24":
        return pixels
    opacity = pixels[..., 3:].astype(np.uint16)
    blended = pixels[..., :3] * opacity + 255 * (255 - opacity)
    return ((blended + 127) // 255).astype(np.uint8)
