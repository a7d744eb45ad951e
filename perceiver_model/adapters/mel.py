"""Log-mel features of framed sound."""

import torch

LOG_FLOOR = 1e-6
"""Added to mel energies before the logarithm; a full-scale sine reaches about 1e4."""


def mel_filterbank(num_mels: int, fft_size: int, sample_rate: int) -> torch.Tensor:
    """Triangular filters from 0 Hz to Nyquist, float32 `[fft_size // 2 + 1, num_mels]`.

    They peak at 1 and are spaced evenly on the HTK mel scale, mel = 2595 log10(1 + Hz / 700).
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
    """Windowed frames `[..., window_length]` to log mel energies `[..., num_mels]`, float32."""
    spectrum = torch.fft.rfft(frames, n=fft_size)
    power = spectrum.real.square() + spectrum.imag.square()
    return (power @ filterbank + LOG_FLOOR).log()


def standardise_frames(log_mels: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Zero mean and unit variance for every sample, over the mels of its valid frames.

    log_mels `[batch, frames, num_mels]`; valid bool `[batch, frames]`, or None if all are.
    Invalid frames become zero.
    """
    if valid is None:
        valid = torch.ones(log_mels.shape[:2], dtype=torch.bool, device=log_mels.device)
    weight = valid.unsqueeze(-1).float()
    count = (weight.sum(dim=(1, 2), keepdim=True) * log_mels.shape[-1]).clamp(min=1)
    mean = (log_mels * weight).sum(dim=(1, 2), keepdim=True) / count
    centred = (log_mels - mean) * weight
    variance = centred.square().sum(dim=(1, 2), keepdim=True) / count
    return centred * torch.rsqrt(variance + 1e-5)
