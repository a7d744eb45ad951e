"""The modality `video`."""

import io
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from pipeline.media.audio.decode import AudioFormat
from pipeline.media.format import MediaFormat
from pipeline.media.modality import Modality, words
from pipeline.media.video.decode import decode_clips, decode_film
from pipeline.media.video.format import VideoFormat

SOUND = AudioFormat.modality


class VideoModality(Modality[VideoFormat]):
    """Clips of films, uint8 `[num_frames, height, width, channels]`, and their sound."""

    format = VideoFormat
    extensions = words("3gp avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts webm wmv")
    inputs = "pipeline.inputs.video:VideoInputs"
    augmentation = "pipeline.training.augmentation.images:change_films"
    brings = frozenset({SOUND})
    not_read = frozenset({"clips", "stride_seconds", "pad_short", "max_seconds", "max_pixels"})
    is_in_every_manifest = True

    def decode(
        self, data: bytes, fmt: VideoFormat, *, name: str = "", strict: bool = True
    ) -> Iterator[np.ndarray]:
        """Yield the clips of a film."""
        yield from decode_clips(data, fmt, strict=strict)

    def cuts(self, fmt: VideoFormat) -> bool:
        """Return whether all clips of a film are used, not only the first."""
        return fmt.clips == "all"

    def decode_with(
        self,
        data: bytes,
        fmt: VideoFormat,
        others: Mapping[str, MediaFormat],
        *,
        required: Collection[str] = (),
        strict: bool = True,
    ) -> Iterator[dict[str, np.ndarray | None]]:
        """Yield the clips of a film and the sound of each."""
        sound = others[SOUND]
        assert isinstance(sound, AudioFormat)
        film = decode_film(data, fmt, sound, needs_sound=SOUND in required, strict=strict)
        for frames, samples in film:
            yield {self.name: frames, SOUND: samples}

    def array_type(self, fmt: VideoFormat) -> tuple[np.dtype, tuple[int, ...]]:
        """Return uint8 and `(num_frames, height, width, channels)`."""
        return np.dtype(np.uint8), fmt.shape

    def example(self, fmt: VideoFormat) -> bytes:
        """Return a grey film of small frames, one frame longer than a clip."""
        import av

        buffer = io.BytesIO()
        rate = Fraction(fmt.frames_per_second).limit_denominator(1000)
        with av.open(buffer, "w", format="avi") as output:
            stream: Any = output.add_stream("mjpeg", rate=rate)
            stream.height = stream.width = 64
            stream.pix_fmt = "yuvj420p"
            for number in range(fmt.num_frames + 1):
                grey = np.full((64, 64, 3), 255 * number // fmt.num_frames, np.uint8)
                frame = av.VideoFrame.from_ndarray(grey, "rgb24")
                frame.pts, frame.time_base = number, 1 / rate
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return buffer.getvalue()
