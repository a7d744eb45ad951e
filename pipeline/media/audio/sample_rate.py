"""Sound at another sample rate, by soxr: a part of it as it is in the whole."""

import math
from collections.abc import Iterable

import numpy as np

REACH = 256
"""Samples, of the slower rate, beyond which a sound's neighbours are not heard: soxr's filter falls
below a hundredth of an int16 step within 100."""


def resample_start(
    pieces: Iterable[np.ndarray], rate: int, sample_rate: int, count: int
) -> np.ndarray:
    """The first samples of a sound at another rate, to the bit as in the whole one.

    Args:
        pieces: float32 `[samples]` each, in order; no more are taken than are needed.
        rate: theirs, hertz.
        sample_rate: the one wanted, hertz.
        count: samples wanted.

    Returns:
        float32 `[samples]`, `count` or as many as there are.
    """
    import soxr

    stream = None
    if rate != sample_rate:
        stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    made: list[np.ndarray] = []
    missing = count
    for piece in pieces:
        made.append(piece if stream is None else stream.resample_chunk(piece))
        missing -= len(made[-1])
        if missing <= 0:
            break
    else:
        if stream is not None:
            made.append(stream.resample_chunk(np.empty(0, np.float32), last=True))
    return np.concatenate(made)[:count] if made else np.empty(0, np.float32)


def resample_within(
    sound: np.ndarray, rate: int, sample_rate: int, *, lead: int, count: int
) -> np.ndarray:
    """A part of a sound at another rate, as it is in the whole but for float32's rounding.

    Args:
        sound: float32 `[samples]`: `lead` samples before the part, the part, and what follows.
        rate: its own, hertz.
        sample_rate: the one wanted, hertz.
        lead: samples before the part, at its own rate: 0, or those of `margins`.
        count: samples wanted, at the other rate.

    Returns:
        float32 `[samples]`, `count` or as many as there are.
    """
    import soxr

    if rate != sample_rate:
        sound = soxr.resample(sound, rate, sample_rate)
    before = lead * sample_rate // rate
    return sound[before : before + count]


def margins(rate: int, sample_rate: int) -> tuple[int, int]:
    """Samples to read before and after a part, so that its ends become what they are in the whole.

    Before it they are as many as make whole samples at the other rate.
    """
    if rate == sample_rate:
        return 0, 0
    reach = math.ceil(REACH * max(1, rate / sample_rate))
    unit = rate // math.gcd(rate, sample_rate)
    return math.ceil(reach / unit) * unit, reach


def num_source_samples(count: int, rate: int, sample_rate: int) -> int:
    """Samples at `rate` that last as long as `count` at `sample_rate`, at least."""
    return -(-count * rate // sample_rate)
