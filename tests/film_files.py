"""A film of two seconds, and what of films is read or refused."""

import numpy as np
from small_media import refusal

from pipeline.media import (
    AudioFormat,
    VideoFormat,
    decode_film,
)

SMALL = {"height": 24, "width": 32}
LEVELS = range(20, 220, 4)
"""Of the 50 frames of two seconds at 25 frames a second."""


def levels(clip: np.ndarray) -> list[int]:
    """Which frame of LEVELS each frame of a clip shows."""
    return [round((int(frame.mean().round()) - 20) / 4) for frame in clip]


def reason(data: bytes, fmt: VideoFormat, audio: AudioFormat | None = None) -> str:
    return refusal(lambda: list(decode_film(data, fmt, audio)))
