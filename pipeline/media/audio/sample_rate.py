"""Resample sound with soxr, so that a part of it equals the same part of the whole."""

import math
from collections.abc import Iterable

import numpy as np

REACH = 256
"""How far apart two samples must be to have no effect on each other, at the slower rate.

soxr's filter falls below a hundredth of an int16 step within 100 samples.
"""


def resample_start(
    pieces: Iterable[np.ndarray], rate: int, sample_rate: int, count: int
) -> np.ndarray:
    """Resample the start of a sound. The result is bit-identical to the start of the whole sound.

    Args:
        pieces: The sound in order, each piece float32 `[samples]`. No more pieces are taken than
            are needed.
        rate: The sample rate of the pieces, in hertz.
        sample_rate: The sample rate of the result, in hertz.
        count: The number of samples to return.

    Returns:
        float32 `[samples]`: `count` samples, or fewer if the sound is shorter.
    """
    import soxr

    stream = None
    if rate != sample_rate:
        stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    resampled: list[np.ndarray] = []
    missing = count
    for piece in pieces:
        resampled.append(piece if stream is None else stream.resample_chunk(piece))
        missing -= len(resampled[-1])
        if missing <= 0:
            break
    else:
        if stream is not None:
            resampled.append(stream.resample_chunk(np.empty(0, np.float32), last=True))
    return np.concatenate(resampled)[:count] if resampled else np.empty(0, np.float32)


def resample_within(
    sound: np.ndarray, rate: int, sample_rate: int, *, lead: int, count: int
) -> np.ndarray:
    """Resample a part of a sound. The result equals that part of the whole up to float32 rounding.

    Args:
        sound: float32 `[samples]`: `lead` samples before the part, the part, and what follows it.
        rate: The sample rate of the sound, in hertz.
        sample_rate: The sample rate of the result, in hertz.
        lead: The number of samples before the part, at `rate`: 0, or what `margins` returns.
        count: The number of samples to return, at `sample_rate`.

    Returns:
        float32 `[samples]`: `count` samples, or fewer if the sound is shorter.
    """
    import soxr

    if rate != sample_rate:
        sound = soxr.resample(sound, rate, sample_rate)
    before = lead * sample_rate // rate
    return sound[before : before + count]


def margins(rate: int, sample_rate: int) -> tuple[int, int]:
    """Return how many samples to read before and after a part, so that its ends are exact.

    The number before the part gives a whole number of samples at the other rate.

    Args:
        rate: The sample rate of the sound, in hertz.
        sample_rate: The sample rate to convert it to, in hertz.
    """
    if rate == sample_rate:
        return 0, 0
    reach = math.ceil(REACH * max(1, rate / sample_rate))
    unit = rate // math.gcd(rate, sample_rate)
    return math.ceil(reach / unit) * unit, reach


def num_source_samples(count: int, rate: int, sample_rate: int) -> int:
    """Return how many samples at `rate` last at least as long as `count` at `sample_rate`."""
    return -(-count * rate // sample_rate)
