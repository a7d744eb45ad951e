"""Sound: any format libsndfile reads, to mono int16 at one sample rate."""

import io
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.media.errors import MediaError

FIELD = "audio"
# Telephone prompts come as bare GSM 06.10 frames, without a header to tell their rate.
GSM_FRAME_BYTES = 33
GSM_SAMPLE_RATE = 8000


@dataclass(frozen=True, kw_only=True)
class AudioFormat:
    """What every recording becomes.

    Attributes:
        sample_rate: hertz.
        seconds: length; longer recordings are cut to their first ``seconds``, shorter ones are
            stored as they are and masked.
        min_seconds: recordings shorter than this are refused.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    sample_rate: int = 16_000
    seconds: float = 2.0
    min_seconds: float = 0.02

    def __post_init__(self) -> None:
        if not 1_000 <= self.sample_rate <= 192_000:
            raise ValueError(f"sample_rate is {self.sample_rate}; it must lie in 1000 to 192000")
        if not 0 < self.min_seconds <= self.seconds:
            raise ValueError(
                f"min_seconds is {self.min_seconds} and seconds {self.seconds}; "
                "0 < min_seconds <= seconds is needed"
            )

    @property
    def num_samples(self) -> int:
        """Samples of a recording of full length."""
        return round(self.sample_rate * self.seconds)

    @property
    def member(self) -> str:
        """Name of the shard member that holds the samples."""
        return f"{FIELD}.npy"


def decode_audio(data: bytes, fmt: AudioFormat, *, suffix: str = "") -> np.ndarray:
    """Decode one recording: mixed to mono, resampled, cut to length.

    No more than ``fmt.seconds`` are ever decoded, whatever length the header claims.

    Args:
        data: the file's bytes.
        fmt: rate and length wanted.
        suffix: the file's extension; only ``.gsm`` (bare GSM 06.10 frames) needs it.

    Returns:
        int16 ``[samples]``, at most ``fmt.num_samples`` long.

    Raises:
        MediaError: the bytes are no sound libsndfile reads, too short, or not finite.
    """
    import soundfile
    import soxr

    if not data:
        raise MediaError("the file is empty")
    raw: dict[str, Any] = {}
    if suffix.lower() == ".gsm":
        if len(data) < GSM_FRAME_BYTES or any(
            data[start] >> 4 != 0xD
            for start in range(0, len(data) - GSM_FRAME_BYTES + 1, GSM_FRAME_BYTES)
        ):
            raise MediaError("not GSM 06.10: a frame lacks its signature")
        raw = {
            "samplerate": GSM_SAMPLE_RATE,
            "channels": 1,
            "format": "RAW",
            "subtype": "GSM610",
        }
    try:
        with soundfile.SoundFile(io.BytesIO(data), **raw) as file:
            rate = file.samplerate
            wanted = round(rate * fmt.seconds)
            sound = file.read(frames=wanted, dtype="float32", always_2d=True).mean(axis=1)
    except MemoryError as error:
        raise MediaError("not enough memory to decode it") from error
    except Exception as error:  # libsndfile's wrapper raises several kinds on malformed bytes
        raise MediaError(_reason(error)) from error
    if len(sound) < fmt.min_seconds * rate:
        raise MediaError(
            f"{len(sound)} samples at {rate} Hz, shorter than min_seconds={fmt.min_seconds}"
        )
    if not np.isfinite(sound).all():
        raise MediaError("it holds values that are not finite")
    if rate != fmt.sample_rate:
        sound = soxr.resample(sound, rate, fmt.sample_rate)
    sound = sound[: fmt.num_samples]
    return np.clip(np.rint(sound * 32767.0), -32768, 32767).astype(np.int16)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "Format not recognised" in text:
        return "no sound format that libsndfile knows"
    # The object's address would make two runs' quarantines differ.
    return re.sub(r"^Error opening <[^>]*>: ", "", text) or type(error).__name__
