"""Log-mel spectrograms in NumPy, equal to those of the model's own mel front end.

The definition is that of VGGish, AudioSet's reference front end (Hershey et al., arXiv 1609.09430):
a periodic Hann window, the power spectrum, triangular filters on the HTK mel scale, and the natural
logarithm.
"""

import math
from functools import cache

import numpy as np

from perceiver_model.config_checks import config_dataclass
from perceiver_model.mel_frames import MelFrames

LOG_FLOOR = 1e-6
"""This is added to mel energies before the logarithm. A full-scale sine reaches about 1e4."""
_FRAMES_AT_ONCE = 4096


@config_dataclass
class MelFormat(MelFrames):
    """A log-mel spectrogram that is stored instead of samples."""


def log_mel(sound: np.ndarray, sample_rate: int, mel: MelFormat, *, num_samples: int) -> np.ndarray:
    """Return the log-mel energies of sound, computed in float64.

    Args:
        sound: int16 `[samples]`, at least one sample.
        sample_rate: The sample rate in hertz.
        mel: The bands and frames.
        num_samples: The number of samples of a full recording, at least as many as in `sound`.

    Returns:
        float16 `[frames, num_mels]`. Of the frames of a full recording, these are the ones that
            hold
        some of this sound, zero-padded. Frame t starts at sample t * hop length.
    """
    window_length, hop_length = mel.window_length(sample_rate), mel.hop_length(sample_rate)
    fft_size = mel.fft_size(sample_rate)
    num_frames = mel.num_frames(sample_rate, num_samples)
    num_frames = min(num_frames, math.ceil(len(sound) / hop_length))
    covered = window_length + (num_frames - 1) * hop_length
    padded = np.pad(sound[:covered], (0, max(0, covered - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window_length)[::hop_length]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_length) / window_length)
    filters = _filterbank(mel.num_mels, fft_size, sample_rate)
    mels = np.empty((num_frames, mel.num_mels), np.float16)
    for start in range(0, num_frames, _FRAMES_AT_ONCE):
        part = slice(start, start + _FRAMES_AT_ONCE)
        spectrum = np.fft.rfft(frames[part] * (window / 32768), n=fft_size)
        mels[part] = np.log((spectrum.real**2 + spectrum.imag**2) @ filters + LOG_FLOOR)
    return mels


@cache
def _filterbank(num_mels: int, fft_size: int, sample_rate: int) -> np.ndarray:
    """Return triangular filters `[bins, num_mels]` with peaks of 1.

    They are evenly spaced on the scale mel = 2595 log10(1 + Hz / 700).
    """
    bins = np.linspace(0, sample_rate / 2, fft_size // 2 + 1)
    highest = 2595 * np.log10(1 + sample_rate / 2 / 700)
    mels = np.arange(num_mels + 2) / (num_mels + 1) * highest
    edges = 700 * (10 ** (mels / 2595) - 1)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    return np.minimum(rising, falling).clip(min=0)
