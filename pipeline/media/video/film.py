"""A film's tracks, decoded frame by frame with PyAV (FFmpeg)."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from pipeline.media.errors import MediaError, one_line
from pipeline.media.video.film_files import is_open_ended
from pipeline.media.video.film_log import FilmLog, listening, refuse_complaints

if TYPE_CHECKING:
    from av.container import InputContainer

CONTAINERS = "avi,asf,dv,flv,gif,ivf,matroska,mov,mpeg,mpegts,mxf,nut,ogg,rm,yuv4mpegpipe"
"""FFmpeg's names of the containers that are read. The others are playlists, which name other files,
still images, and raw streams, which any bytes could be."""

ATTACHED_PICTURE = 0x400
"""FFmpeg's flag for a stream that is the cover picture of a sound file."""

LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read alpha, by the names of the decoders that do not."""

BROADCAST = frozenset(["mpegts", "mpeg", "dv", "rm"])
"""FFmpeg's names of containers that may begin between two key frames. Messages before the first
complete frame are then no sign of damage."""

OPEN_GROUPS = frozenset(["h264", "hevc"])
"""Codecs in which frames after the first key frame may refer to frames before it."""

MAX_STEP_BACK_SECONDS = 1
"""A frame that is late by at most this is shown at once. If it is later, two films were joined."""


class Track:
    """The frames of one track, in the order and at the times at which they are shown.

    Attributes:
        stream: PyAV's stream.
        begin: The time of the first frame in seconds of the film's clock; 0 before that frame.
        end: The end of the last frame so far, in seconds of the film's clock.
    """

    def __init__(
        self,
        container: "InputContainer",
        stream: Any,
        decoder: Any,
        data: bytes,
        log: FilmLog | None,
    ) -> None:
        self.stream = stream
        self.end = Fraction(0)
        self.begin = Fraction(0)
        self._container = container
        self._decoder = decoder
        self._num_bytes = len(data)
        self._is_open_ended = is_open_ended(data)
        self._log = log

    def frames(self) -> Iterator[tuple[Fraction, Any]]:
        """Yield each frame with its time in seconds. The times never decrease.

        Packets that cannot be decoded before the first frame are skipped, because recordings may
        begin anywhere.

        Raises:
            MediaError: A packet cannot be decoded, or the clock jumps back.
        """
        time: Fraction | None = None
        guessed = self.guessed_duration
        for frame in self._decoded():
            stamp = frame.pts if frame.pts is not None else frame.dts
            if stamp is None or frame.time_base is None:
                shown = self.end
            else:
                shown = stamp * Fraction(frame.time_base)
            if time is None:
                self.begin = shown
            else:
                if shown > time:
                    guessed = shown - time
                elif time - shown > MAX_STEP_BACK_SECONDS:
                    raise MediaError(
                        f"its clock jumps back {float(time - self.begin):.3f} s after its start"
                    )
                shown = max(shown, time)
            time = shown
            held = (frame.duration or 0) * Fraction(frame.time_base or 0)
            self.end = time + (held if held > 0 else guessed)
            yield time, frame

    def _decoded(self) -> Iterator[Any]:
        import av

        damage: av.FFmpegError | None = None
        begun = False
        strict = False
        for number, packet in enumerate(self._packets()):
            if number == 0 and self._log is not None:
                strict = packet.is_keyframe and not self._may_refer_back()
            try:
                with listening(self._log):
                    frames = self._decoder.decode(packet)
            except MemoryError:
                raise
            except av.FFmpegError as error:
                if strict or (begun and self._log is None):
                    raise MediaError(self._damaged()) from error
                damage = error
                continue
            begun = begun or bool(frames)
            if strict:
                self._check_whole(packet, frames)
            elif self._log is not None and any(not frame.is_corrupt for frame in frames):
                self._log.forget()
                strict = True
            yield from frames
        if damage is not None and not begun:
            raise damage

    def _may_refer_back(self) -> bool:
        is_broadcast = self._container.format.name in BROADCAST
        return is_broadcast and self._decoder.codec.name in OPEN_GROUPS

    def _check_whole(self, packet: Any, frames: list[Any]) -> None:
        """Reject damage that FFmpeg conceals."""
        refuse_complaints(self._log, self._damaged())
        if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
            raise MediaError(self._damaged())

    def _packets(self) -> Iterator[Any]:
        """Yield the track's packets. FFmpeg reports a wrong packet size as a lack of memory."""
        packets = self._container.demux(self.stream)
        while True:
            try:
                with listening(self._log):
                    packet = next(packets, None)
            except MemoryError:
                if not _is_free(self._num_bytes):
                    raise
            else:
                if packet is None:
                    return
                yield packet
                continue
            # Outside the handler, because a MemoryError as the context would count as its cause.
            raise MediaError(f"{self._damaged()}: a packet claims more bytes than the film has")

    def _damaged(self) -> str:
        return f"damaged {float(self.end - self.begin):.3f} s after its start"

    @property
    def guessed_duration(self) -> Fraction:
        """The duration of a frame that does not state it: from the average rate, else 1/25 s."""
        rate = getattr(self.stream, "average_rate", None)
        return 1 / Fraction(rate) if rate and rate > 0 else Fraction(1, 25)

    @property
    def pixel_aspect(self) -> Fraction | None:
        """The width of a pixel divided by its height, from the container, else from the codec."""
        return self.stream.sample_aspect_ratio or self.stream.codec_context.sample_aspect_ratio

    @property
    def declared_seconds(self) -> Fraction | None:
        """The length that the container declares for this track, or None if it declares none."""
        if self._is_open_ended:
            return None
        if self.stream.duration is not None and self.stream.time_base is not None:
            return self.stream.duration * Fraction(self.stream.time_base)
        # Every common muxer writes the end of a Matroska track as HOURS:MINUTES:SECONDS.
        hours, *rest = (self.stream.metadata.get("DURATION") or "").split(":")
        try:
            minutes, seconds = rest
            end = Fraction(int(hours) * 3600 + int(minutes) * 60) + Fraction(seconds)
            start = (self.stream.start_time or 0) * Fraction(self.stream.time_base or 0)
            return end - max(start, Fraction(0))
        except (ValueError, ZeroDivisionError):
            return None


@contextmanager
def open_track(
    data: bytes,
    kind: Literal["video", "audio"],
    *,
    max_pixels: int,
    strict: bool = True,
) -> Iterator[Track | None]:
    """Open a film's first track of a kind. The result is None if the film has no such track.

    One thread decodes, with the same results as FFmpeg's reference code.

    Args:
        data: The bytes of the film.
        kind: The kind of the track.
        max_pixels: The most pixels in a frame. More are rejected.
        strict: Whether to also reject damage that FFmpeg conceals. Requires `ffmpeg_messages`.

    Raises:
        MediaError: The file is not a film, or FFmpeg lacks its codec. Inside the block, all errors
            of PyAV are turned into a MediaError.
    """
    import av

    options = {"max_pixels": str(max_pixels), "threads": "1", "flags": "+bitexact"}
    unreadable = "no film that FFmpeg can read"
    log = FilmLog() if strict else None
    try:
        with listening(log):
            opened = av.open(
                io.BytesIO(data),
                mode="r",
                options=options,
                container_options={"format_whitelist": CONTAINERS, "protocol_whitelist": "none"},
                metadata_errors="replace",
            )
        with opened as container:
            unreadable = "damaged"
            stream = _first(container, kind)
            if stream is None:
                yield None
                return
            if stream.codec_context is None:
                raise MediaError(f"FFmpeg has no decoder for its {kind} track")
            decoder = _decoder_of_alpha(stream, options) or stream.codec_context
            decoder.thread_count = 1
            if log is not None:
                decoder.options = {**decoder.options, "err_detect": "+crccheck+explode"}
                # FFmpeg has already decoded the first packets to find out what the film contains.
                name = container.format.name
                log.forget(keep_of="" if name in BROADCAST else name)
            yield Track(container, stream, decoder, data, log)
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError("not enough memory to decode it") from error
    except av.FFmpegError as error:
        raise MediaError(f"{unreadable}: {error.strerror}") from error
    except Exception as error:  # PyAV's own checks of malformed files
        raise MediaError(f"{unreadable}: {one_line(error)}") from error


def _is_free(num_bytes: int) -> bool:
    """Return whether this much memory can be allocated. The memory is not touched."""
    try:
        bytearray(num_bytes)
    except MemoryError:
        return False
    return True


def _decoder_of_alpha(stream: Any, options: dict[str, str]) -> Any:
    """Return a decoder for VP8 or VP9 with alpha in WebM, which FFmpeg's own decoders ignore.

    Raises:
        MediaError: FFmpeg was built without libvpx, which reads alpha.
    """
    import av

    name = LIBVPX.get(stream.codec_context.codec.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        return None
    try:
        decoder = av.codec.CodecContext.create(name, "r")
    except ValueError as error:
        raise MediaError(
            f"an alpha channel, which this FFmpeg cannot read without {name}; write the film again "
            "in another codec with alpha, or without"
        ) from error
    decoder.options = options
    return decoder


def _first(container: "InputContainer", kind: str) -> Any:
    for stream in container.streams:
        if stream.type == kind and not int(stream.disposition) & ATTACHED_PICTURE:
            return stream
    return None
