"""Decode sound of any format that libsndfile reads: to mono int16, or to log-mel frames."""

import io
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from perceiver_model.config_checks import PositiveNumber, config_dataclass, refusal
from pipeline.media.audio.checks import check_flac, check_gsm, is_read_in_part, with_its_length
from pipeline.media.audio.log import find_shortage
from pipeline.media.audio.mel import MelFormat, log_mel
from pipeline.media.audio.mp3 import find_frames
from pipeline.media.audio.ogg import recordings_of
from pipeline.media.audio.sample_rate import resample_start
from pipeline.media.audio.sources import FFmpegSource, FileSource, open_sound
from pipeline.media.audio.tags import without_tags
from pipeline.media.errors import MediaError
from pipeline.media.format import MediaFormat

FIELD = "audio"
# Telephone prompts come as bare GSM 06.10 frames. They have no header that declares their rate.
GSM_SAMPLE_RATE = 8000
MAX_SOURCE_RATE = 768_000
"""In hertz: the rate of the fastest converters. Beyond it, a header is malformed."""
_NO_LENGTH = 2**62
"""From this number of frames on, libsndfile means that it does not know the number."""
_UNKNOWN = "no sound format that libsndfile knows"
_SD2_REASONS = re.compile(r"bad (data|map) (offset|length)|bad resource fork|bad sample size")
"""What libsndfile reports for bytes of no known format if the working directory holds a file `._`.

It takes that file for the other half of a Sound Designer II file. The result must not depend on
the working directory.
"""


@config_dataclass
class AudioFormat(MediaFormat):
    """The format of every stored recording.

    Attributes:
        sample_rate: The sample rate in hertz.
        seconds: The length in seconds. Longer recordings are cut. Shorter ones are stored as they
            are and masked.
        clips: `first` takes only the first `seconds` of a recording, `all` cuts the whole recording
            into clips of so many seconds. A last clip that is shorter than `min_seconds` is left
            out, unless it is the only one.
        min_seconds: Recordings shorter than this are refused.
        encoding: How the shards hold the samples: `raw` (int16 `.npy`), or `flac`, which is
            lossless and takes about half the space.
        mel: A log-mel spectrogram that is stored instead of the samples; None stores the samples.
    """

    modality: ClassVar[str] = "audio"

    sample_rate: Annotated[int, Field(ge=1_000, le=192_000)] = 16_000
    seconds: PositiveNumber = 2.0
    min_seconds: PositiveNumber = 0.02
    encoding: Literal["raw", "flac"] = "raw"
    mel: MelFormat | None = None
    clips: Literal["first", "all"] = "first"

    def __post_init__(self) -> None:
        if self.min_seconds > self.seconds:
            raise refusal(self, "min_seconds", f"at most seconds = {self.seconds}")
        if self.mel is not None:
            self.mel.check_rate(self.sample_rate)
            if self.encoding != "raw":
                raise ValueError(
                    f"encoding is '{self.encoding}' and mel is set; mel frames need encoding 'raw'"
                )

    @property
    def num_samples(self) -> int:
        """The number of samples of a full recording."""
        return round(self.sample_rate * self.seconds)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a full recording: `[samples]` or `[frames, num_mels]`."""
        if self.mel is None:
            return (self.num_samples,)
        return (self.mel.num_frames(self.sample_rate, self.num_samples), self.mel.num_mels)

    @property
    def dtype(self) -> np.dtype:
        """int16 for samples, float16 for log-mel frames."""
        return np.dtype(np.int16 if self.mel is None else np.float16)

    @property
    def member(self) -> str:
        """The name of the shard member that holds the samples or frames."""
        if self.mel is not None:
            return f"{FIELD}.mel.npy"
        return f"{FIELD}.npy" if self.encoding == "raw" else f"{FIELD}.flac"


def decode_audio(
    data: bytes, fmt: AudioFormat, *, suffix: str = "", strict: bool = True
) -> np.ndarray:
    """Decode the first clip of a recording: mix it to mono, resample it, and cut it to length.

    The result is the start of the whole recording, resampled. Little more than `fmt.seconds` is
    ever decoded, whatever length the header claims. If a header does not know the length, as in a
    stream, the file is read to its end. Ogg chains are read recording after recording. If
    libsndfile guesses the length of an MP3 wrong, FFmpeg reads it.

    Args:
        data: The file's bytes.
        fmt: The sample rate and the length, and whether to compute log-mel frames.
        suffix: The file's extension. Only `.gsm` (bare GSM 06.10 frames) needs it.
        strict: Whether to refuse a recording that is cut short or damaged even if libsndfile could
            read the rest of it.

    Returns:
        int16 `[samples]` or float16 `[frames, num_mels]`, at most as long as `fmt.shape`.

    Raises:
        MediaError: libsndfile cannot read the bytes, or the recording is too short, is not finite,
            is cut short or is damaged.
    """
    return to_format(_decoded(data, fmt, fmt.num_samples, suffix, strict), fmt)


def decode_clips(
    data: bytes, fmt: AudioFormat, *, suffix: str = "", strict: bool = True
) -> Iterator[np.ndarray]:
    """Yield the clips of a recording in order, or its first one only, as `fmt.clips` says.

    A whole recording is decoded at once, in the memory that the decoder may take. The arguments,
    the arrays and the errors are those of `decode_audio`.
    """
    if fmt.clips == "first":
        yield decode_audio(data, fmt, suffix=suffix, strict=strict)
        return
    sound = _decoded(data, fmt, _NO_LENGTH, suffix, strict)
    length, shortest = fmt.num_samples, fmt.min_seconds * fmt.sample_rate
    for start in range(0, max(1, len(sound)), length):
        clip = sound[start : start + length]
        if not start or len(clip) >= shortest:
            yield to_format(clip, fmt)


def _decoded(data: bytes, fmt: AudioFormat, count: int, suffix: str, strict: bool) -> np.ndarray:
    """Return up to `count` samples of a recording: mono, float32 `[samples]`, at the format's rate.

    The other arguments and the errors are those of `decode_audio`.
    """
    if not data:
        raise MediaError("the file is empty")
    raw: dict[str, Any] = {}
    if suffix.lower() == ".gsm":
        check_gsm(data, strict)
        raw = {
            "samplerate": GSM_SAMPLE_RATE,
            "channels": 1,
            "format": "RAW",
            "subtype": "GSM610",
        }
    else:
        data = with_its_length(without_tags(data), strict)
    recordings = recordings_of(data) if data.startswith(b"OggS") else [data]
    try:
        with open_sound(io.BytesIO(recordings[0]), **raw) as file:
            if file.format == "SD2":
                raise MediaError(_UNKNOWN)
            if strict and (shortage := find_shortage(file, data)):
                raise MediaError(shortage)
            rate = file.samplerate
            if not 0 < rate <= MAX_SOURCE_RATE:
                raise MediaError(f"its rate is {rate} Hz; it must lie in 1 to {MAX_SOURCE_RATE}")
            source: FileSource | FFmpegSource = FileSource(file, recordings[1:])
            sound = _resampled(source, rate, fmt, count)
            if file.format in ("MP3", "MPEG"):
                frames = find_frames(data)
                if strict and frames.shortage:
                    raise MediaError(frames.shortage)
                if source.has_ended and is_read_in_part(frames, source.num_samples, strict):
                    source = FFmpegSource(data, rate)
                    sound = _resampled(source, rate, fmt, count)
            elif (
                strict
                and source.has_ended
                and _NO_LENGTH > source.num_declared > source.num_samples
            ):
                there = f"{source.num_samples} of {source.num_declared}"
                raise MediaError(f"cut short: {there} frames are there")
            if strict and source.num_samples == file.frames and file.format == "FLAC":
                check_flac(data)
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError("not enough memory to decode it") from error
    except Exception as error:  # libsndfile's wrapper raises several exceptions on malformed bytes
        raise MediaError(_reason(error)) from error
    if source.has_ended and source.num_samples < fmt.min_seconds * rate:
        raise MediaError(
            f"{source.num_samples} samples at {rate} Hz, shorter than min_seconds={fmt.min_seconds}"
        )
    return sound


def _resampled(
    source: FileSource | FFmpegSource, rate: int, fmt: AudioFormat, count: int
) -> np.ndarray:
    pieces = source.pieces(fmt.sample_rate, count)
    return resample_start(pieces, rate, fmt.sample_rate, count)


def to_format(sound: np.ndarray, fmt: AudioFormat) -> np.ndarray:
    """Convert mono sound to the format: to int16, and to log-mel frames if the format has them.

    Args:
        sound: float32 `[samples]`, where 1 is full scale, at `fmt.sample_rate` and not longer than
            `fmt.num_samples`.
        fmt: The format.

    Returns:
        The same as `decode_audio`.

    Raises:
        MediaError: The sound is empty or not finite.
    """
    if not len(sound) or not np.isfinite(sound).all():
        raise MediaError(f"it is too short or too loud to resample to {fmt.sample_rate} Hz")
    samples = np.clip(np.rint(sound * 32768.0), -32768, 32767).astype(np.int16)
    if fmt.mel is None:
        return samples
    return log_mel(samples, fmt.sample_rate, fmt.mel, num_samples=fmt.num_samples)


def encode_flac(samples: np.ndarray, sample_rate: int) -> bytes:
    """Return lossless FLAC bytes of int16 `[samples]`."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(content: bytes | memoryview) -> np.ndarray:
    """Return the int16 `[samples]` that were given to `encode_flac`.

    Raises:
        MediaError: The content is damaged.
    """
    import soundfile

    try:
        samples, _ = soundfile.read(io.BytesIO(content), dtype="int16")
    except Exception as error:  # libsndfile's wrapper raises several exceptions on malformed bytes
        raise MediaError(_reason(error)) from error
    found: np.ndarray = samples
    return found


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "Format not recognised" in text or _SD2_REASONS.search(text):
        return _UNKNOWN
    if "possibly a pipe" in text:  # what libsndfile says of an MP3 without a whole frame
        return "malformed or cut short"
    # The address of the object would make the quarantines of two runs differ.
    return re.sub(r"^Error opening <[^>]*>: ", "", text) or type(error).__name__
