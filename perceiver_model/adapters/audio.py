"""Sound as tokens: chunks of raw samples, or log-mel features."""

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.adapters.checks import Tokens, check_inputs
from perceiver_model.adapters.configs import AudioInput, ChunksConfig, MelConfig
from perceiver_model.adapters.mel import log_mel, mel_filterbank, standardise_frames
from perceiver_model.constants import Float32Constant


class ChunkAdapter(nn.Module):
    """One token per chunk of raw samples; the last is padded with zeros (paper, section 4.2)."""

    def __init__(self, audio: AudioInput, chunks: ChunksConfig) -> None:
        super().__init__()
        self.num_samples = audio.num_samples
        self.chunk_size = chunks.chunk_size

    def forward(self, samples: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, ceil(num_samples / chunk_size), chunk_size]` and its mask.

        Args:
            samples: The sound `[batch, num_samples]`, int16 or floating point.
            mask: The valid samples, bool `[batch, num_samples]`, or None if all are valid.
        """
        content = self._chunks(_waveform(samples, mask, self.num_samples))
        return content, None if mask is None else self._chunks(mask).any(dim=-1)

    def _chunks(self, samples: torch.Tensor) -> torch.Tensor:
        padding = (0, -self.num_samples % self.chunk_size)
        return F.pad(samples, padding).unflatten(-1, (-1, self.chunk_size))


class MelAdapter(nn.Module):
    """A log-mel spectrogram, standardised over the valid frames of each sample, all in float32."""

    def __init__(self, audio: AudioInput, mel: MelConfig) -> None:
        super().__init__()
        self.num_samples = audio.num_samples
        self.cells = mel.tokens == "cells"
        self.num_mels = mel.num_mels
        self.window_length = mel.window_length(audio.sample_rate)
        self.hop_length = mel.hop_length(audio.sample_rate)
        covered = (
            self.window_length
            + (mel.num_frames(audio.sample_rate, audio.num_samples) - 1) * self.hop_length
        )
        self.padding = (0, covered - audio.num_samples)
        self.fft_size = mel.fft_size(audio.sample_rate)
        self.window = Float32Constant(torch.hann_window(self.window_length))
        self.filterbank = Float32Constant(
            mel_filterbank(mel.num_mels, self.fft_size, audio.sample_rate)
        )

    def forward(self, samples: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content and the token mask.

        The content is `[batch, frames, num_mels]`, or `[batch, frames * num_mels, 1]` if every cell
        is a token. Frame t starts at sample t * hop length.

        Args:
            samples: The sound `[batch, num_samples]`, int16 or floating point.
            mask: The valid samples, bool `[batch, num_samples]`, or None if all are valid.
        """
        frames = self._frames(_waveform(samples, mask, self.num_samples))
        valid = None if mask is None else self._frames(mask).any(dim=-1)
        with torch.autocast(frames.device.type, enabled=False):
            log_mels = log_mel(frames * self.window(), self.filterbank(), self.fft_size)
            content = standardise_frames(log_mels, valid)
        if not self.cells:
            return content, valid
        cells = None if valid is None else valid.repeat_interleave(self.num_mels, dim=1)
        return content.flatten(1).unsqueeze(-1), cells

    def _frames(self, samples: torch.Tensor) -> torch.Tensor:
        """Cut `[batch, num_samples]` into `[batch, frames, window_length]`.

        The last frame is padded with zeros.
        """
        return F.pad(samples, self.padding).unfold(-1, self.window_length, self.hop_length)


def _waveform(samples: torch.Tensor, mask: torch.Tensor | None, num_samples: int) -> torch.Tensor:
    """Return sound `[batch, num_samples]` as float32; int16 is scaled to [-1, 1).

    Invalid samples become zero.
    """
    check_inputs(samples, mask, (num_samples,), torch.int16)
    scale = 1.0 if samples.is_floating_point() else 1 / 32768
    waveform = samples.float() * scale
    return waveform if mask is None else waveform.masked_fill(~mask, 0.0)
