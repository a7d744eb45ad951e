"""The log-mel features of sound that is cut into frames."""

import torch

LOG_FLOOR = 1e-6
"""The number added to mel energies before the logarithm. A full-scale sine reaches about 1e4."""


def mel_filterbank(num_mels: int, fft_size: int, sample_rate: int) -> torch.Tensor:
    """Return triangular filters from 0 Hz to Nyquist, float32 `[fft_size // 2 + 1, num_mels]`.

    Each filter peaks at 1. The filters are evenly spaced on the HTK mel scale, mel = 2595 log10(1 +
    Hz / 700).

    Args:
        num_mels: The number of filters.
        fft_size: The number of samples in the Fourier transform.
        sample_rate: The sample rate in Hz.
    """
    bins = torch.linspace(0, sample_rate / 2, fft_size // 2 + 1, dtype=torch.float64)
    highest = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700, dtype=torch.float64))
    mels = torch.arange(num_mels + 2, dtype=torch.float64) / (num_mels + 1) * highest
    edges = 700 * (10 ** (mels / 2595) - 1)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()


def log_mel(frames: torch.Tensor, filterbank: torch.Tensor, fft_size: int) -> torch.Tensor:
    """Turn windowed frames into log-mel energies, float32.

    Args:
        frames: The frames times the window, `[..., window_length]`.
        filterbank: The filters `[fft_size // 2 + 1, num_mels]`.
        fft_size: The number of samples in the Fourier transform.

    Returns:
        The energies `[..., num_mels]`.
    """
    spectrum = torch.fft.rfft(frames, n=fft_size)
    power = spectrum.real.square() + spectrum.imag.square()
    return (power @ filterbank + LOG_FLOOR).log()


def standardise_frames(log_mels: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Bring the valid frames of every sample to zero mean and unit variance.

    Args:
        log_mels: The energies `[batch, frames, num_mels]`.
        valid: The valid frames, bool `[batch, frames]`, or None if all are valid.

    Returns:
        The energies in the same shape; invalid frames are zero.
    """
    if valid is None:
        valid = torch.ones(log_mels.shape[:2], dtype=torch.bool, device=log_mels.device)
    weight = valid.unsqueeze(-1).float()
    count = (weight.sum(dim=(1, 2), keepdim=True) * log_mels.shape[-1]).clamp(min=1)
    mean = (log_mels * weight).sum(dim=(1, 2), keepdim=True) / count
    centred = (log_mels - mean) * weight
    variance = centred.square().sum(dim=(1, 2), keepdim=True) / count
    return centred * torch.rsqrt(variance + 1e-5)
