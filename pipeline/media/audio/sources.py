"""Sound as mono pieces: of files that libsndfile reads, and of MP3s that FFmpeg reads."""

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.media.audio.sample_rate import margins, num_source_samples
from pipeline.media.errors import MediaError

if TYPE_CHECKING:
    from soundfile import SoundFile

_VALUES_AT_ONCE = 1 << 18
FULL_SCALE = {"u1": 128.0, "i2": 32768.0, "i4": 2147483648.0, "i8": 9223372036854775808.0}
"""The largest value, by NumPy's name of a sample's type."""


def open_sound(file: io.BytesIO, **raw: Any) -> "SoundFile":
    """Open a sound file that is read until nothing more comes.

    soundfile seeks after each piece, which a FLAC that does not say its length refuses, but for
    files that cannot be sought.
    """
    import soundfile

    class Sequential(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    return Sequential(file, **raw)


class FileSource:
    """The mean of a file's channels, float32, in pieces: a header may claim a thousand channels.

    Args:
        file: the recording, or the first one of an Ogg chain.
        further: the files of the chain's other recordings, which are read after it.

    Attributes:
        num_samples: how many were read so far.
        num_declared: how many the recordings that were opened so far declare.
        has_ended: whether there are no more.
    """

    def __init__(self, file: "SoundFile", further: Sequence[bytes] = ()) -> None:
        self._file = file
        self._further = _opened(further)
        self._rate = file.samplerate
        self.num_samples = 0
        self.num_declared = file.frames
        self.has_ended = False

    def pieces(self, sample_rate: int, count: int) -> Iterator[np.ndarray]:
        """All there is: first what lasts as long as `count` samples at `sample_rate`.

        Raises:
            MediaError: a value is not finite, or a chain changes its rate.
        """
        wanted = num_source_samples(count, self._rate, sample_rate)
        _, further = margins(self._rate, sample_rate)
        while not self.has_ended:
            at_once = max(1, _VALUES_AT_ONCE // self._file.channels)
            missing = wanted - self.num_samples
            frames = min(missing if missing > 0 else further, at_once)
            piece = self._file.read(frames=frames, dtype="float32", always_2d=True).mean(axis=1)
            if not np.isfinite(piece).all():
                raise MediaError("it holds values that are not finite")
            self.num_samples += len(piece)
            self.has_ended = len(piece) < frames and not self._open_next()
            yield piece

    def _open_next(self) -> bool:
        """Go on to the next recording of a chain; False where there is none."""
        file = next(self._further, None)
        if file is None:
            return False
        if file.samplerate != self._rate:
            raise MediaError(
                f"an Ogg chain whose rate changes from {self._rate} to {file.samplerate} Hz; "
                "split it, or write it again as one (ffmpeg -i)"
            )
        self._file = file
        self.num_declared += file.frames
        return True


def _opened(recordings: Sequence[bytes]) -> Iterator["SoundFile"]:
    for recording in recordings:
        with open_sound(io.BytesIO(recording)) as file:
            yield file


class FFmpegSource:
    """An MP3 by FFmpeg, which reads frame after frame whatever length it has.

    Its attributes are those of `FileSource`.
    """

    def __init__(self, data: bytes, rate: int) -> None:
        self._data, self._rate = data, rate
        self.num_samples = self.num_declared = 0
        self.has_ended = False

    def pieces(self, sample_rate: int, count: int) -> Iterator[np.ndarray]:
        """All frames; the arguments of `FileSource.pieces` make no difference.

        Raises:
            MediaError: a frame cannot be decoded, or the rate changes.
        """
        import av

        try:
            with av.open(
                io.BytesIO(self._data), "r", format="mp3", metadata_errors="replace"
            ) as file:
                for frame in file.decode(audio=0):
                    if frame.sample_rate != self._rate:
                        raise MediaError(
                            f"an MP3 whose rate changes from {self._rate} to {frame.sample_rate} Hz"
                        )
                    self.num_samples += frame.samples
                    yield mono(frame)
        except av.FFmpegError as error:
            raise MediaError(
                f"damaged after {self.num_samples} samples: {error.strerror}"
            ) from error
        self.has_ended = True


def mono(frame: Any) -> np.ndarray:
    """The mean of the channels of PyAV's frame of sound.

    Returns:
        float32 `[samples]`, 1 is full scale.

    Raises:
        MediaError: a value is not finite.
    """
    values = frame.to_ndarray()
    channels = len(frame.layout.channels)
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    kind = values.dtype.str[1:]
    if kind in FULL_SCALE:
        offset = 128.0 if kind == "u1" else 0.0
        values = (values.astype(np.float32) - offset) / FULL_SCALE[kind]
    mean = values.mean(axis=0, dtype=np.float64).astype(np.float32)
    if not np.isfinite(mean).all():
        raise MediaError("its sound holds values that are not finite")
    return mean
