"""Read sound as mono pieces: files with libsndfile, and some MP3s with FFmpeg."""

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
"""The value that means full scale, by NumPy's name of a sample's integer type."""


def open_sound(file: io.BytesIO, **raw: Any) -> "SoundFile":
    """Open a sound file that is read until no more samples come.

    soundfile seeks after each piece, except in files that are not seekable. A FLAC file that does
    not declare its length refuses to seek.
    """
    import soundfile

    class Sequential(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    return Sequential(file, **raw)


class FileSource:
    """The mean of a file's channels, float32, in pieces.

    It is read in pieces because a header may claim a thousand channels.

    Args:
        file: The recording, or the first one of an Ogg chain.
        further: The files of the chain's other recordings, which are read after it.

    Attributes:
        num_samples: The number of samples read so far.
        num_declared: The number of samples that the recordings opened so far declare.
        has_ended: Whether there are no more samples.
    """

    def __init__(self, file: "SoundFile", further: Sequence[bytes] = ()) -> None:
        self._file = file
        self._further = _opened(further)
        self._rate = file.samplerate
        self.num_samples = 0
        self.num_declared = file.frames
        self.has_ended = False

    def pieces(self, sample_rate: int, count: int) -> Iterator[np.ndarray]:
        """Yield the whole sound. The first pieces last as long as `count` samples at `sample_rate`.

        Args:
            sample_rate: The sample rate to which the sound will be converted, in hertz.
            count: The number of samples needed at that rate.

        Yields:
            float32 `[samples]`, where 1 is full scale.

        Raises:
            MediaError: A value is not finite, or the chain changes its sample rate.
        """
        needed = num_source_samples(count, self._rate, sample_rate)
        _, further = margins(self._rate, sample_rate)
        while not self.has_ended:
            at_once = max(1, _VALUES_AT_ONCE // self._file.channels)
            missing = needed - self.num_samples
            frames = min(missing if missing > 0 else further, at_once)
            piece = self._file.read(frames=frames, dtype="float32", always_2d=True).mean(axis=1)
            if not np.isfinite(piece).all():
                raise MediaError("it holds values that are not finite")
            self.num_samples += len(piece)
            self.has_ended = len(piece) < frames and not self._open_next()
            yield piece

    def _open_next(self) -> bool:
        """Open the next recording of a chain; return False if there is none."""
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
    """An MP3 read with FFmpeg, which decodes every frame, whatever length the file declares.

    It has the attributes of `FileSource`.
    """

    def __init__(self, data: bytes, rate: int) -> None:
        self._data, self._rate = data, rate
        self.num_samples = self.num_declared = 0
        self.has_ended = False

    def pieces(self, sample_rate: int, count: int) -> Iterator[np.ndarray]:
        """Yield all frames. The arguments of `FileSource.pieces` have no effect here.

        Raises:
            MediaError: A frame cannot be decoded, or the sample rate changes.
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
    """Return the mean of the channels of a PyAV audio frame.

    Returns:
        float32 `[samples]`, where 1 is full scale.

    Raises:
        MediaError: A value is not finite.
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
