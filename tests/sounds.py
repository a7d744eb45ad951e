"""Tones, and sound files of every kind."""

import io
from typing import Any

import numpy as np
import soundfile


def tone(hertz: float, rate: int, seconds: float = 1.0, loudness: float = 0.5) -> np.ndarray:
    """Mono float32 `[samples]`; loudness 1 is full scale."""
    time = np.arange(round(rate * seconds)) / rate
    return (loudness * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def encoded(sound: np.ndarray, rate: int, **kind: Any) -> bytes:
    """A sound file; by default WAV of float32."""
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, **(kind or {"format": "WAV", "subtype": "FLOAT"}))
    return buffer.getvalue()
