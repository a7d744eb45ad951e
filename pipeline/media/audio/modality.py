"""The modality `audio`."""

import io
import wave
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np

from pipeline.media.audio.decode import AudioFormat, decode_clips, decode_flac, encode_flac
from pipeline.media.audio.mel import MelFormat
from pipeline.media.modality import Modality, words


class AudioModality(Modality[AudioFormat]):
    """Recordings as int16 `[samples]`, or as log-mel frames, float16 `[frames, num_mels]`."""

    format = AudioFormat
    extensions = words("aif aifc aiff au caf flac gsm m4a mp3 oga ogg opus rf64 snd w64 wav")
    inputs = "pipeline.inputs.audio:AudioInputs"
    augmentation = "pipeline.training.augmentation.sound:change_sound"
    shortest = 0
    not_read = frozenset({"encoding", "min_seconds", "clips"})
    later_fields: ClassVar = {"clips": "first"}
    is_in_every_manifest = True

    def decode(
        self, data: bytes, fmt: AudioFormat, *, name: str = "", strict: bool = True
    ) -> Iterator[np.ndarray]:
        """Yield the clips of a recording."""
        yield from decode_clips(data, fmt, suffix=PurePosixPath(name).suffix, strict=strict)

    def cuts(self, fmt: AudioFormat) -> bool:
        """Return whether all clips of a recording are used, not only the first."""
        return fmt.clips == "all"

    def array_type(self, fmt: AudioFormat) -> tuple[np.dtype, tuple[int, ...]]:
        """Return the dtype and shape of a full recording."""
        return np.dtype(fmt.dtype), fmt.shape

    def encode(self, array: np.ndarray, fmt: AudioFormat) -> bytes:
        """Encode the array as FLAC if the member is `.flac`, else as `.npy`."""
        if fmt.member.endswith(".flac"):
            return encode_flac(array, fmt.sample_rate)
        return super().encode(array, fmt)

    def decode_member(self, content: bytes | memoryview, fmt: AudioFormat) -> np.ndarray:
        """Decode what `encode` wrote."""
        if fmt.member.endswith(".flac"):
            return decode_flac(content)
        return super().decode_member(content, fmt)

    def from_dict(self, fields: Mapping[str, Any]) -> AudioFormat:
        """Return the format. In `fields`, `mel` is a dictionary or None."""
        mel = fields.get("mel")
        return AudioFormat(**{**fields, "mel": None if mel is None else MelFormat(**mel)})

    def example(self, fmt: AudioFormat) -> bytes:
        """Return a WAV file with a tone of 220 Hz."""
        seconds = min(fmt.seconds, max(1.0, fmt.min_seconds))
        times = np.arange(round(seconds * fmt.sample_rate)) / fmt.sample_rate
        samples = (8000 * np.sin(2 * np.pi * 220 * times)).astype("<i2")
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(fmt.sample_rate)
            file.writeframes(samples.tobytes())
        return buffer.getvalue()
