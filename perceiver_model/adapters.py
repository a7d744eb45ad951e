"""Adapters: raw images or sound, standardised on the device and cut into tokens.

`forward(inputs, mask)` of each returns the tokens' content, float32 unless the adapter has weights
(then in theirs), `[batch, tokens, channels]`, and a bool mask `[batch, tokens]` of valid tokens,
or None if all are. The input's mask is True where a pixel or sample is valid; a token is valid if
any part of it is. Invalid pixels and samples are set to zero first, so what they hold is without
influence.

Tokens come in row-major order of `ClassifierConfig.token_grid`. Wrong shapes and dtypes raise
ValueError.
"""

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.config import ClassifierConfig
from perceiver_model.constants import Float32Constant
from perceiver_model.inputs import AudioInput, Chunks, Conv, ImageInput, Mel, Patches, Pixels
from perceiver_model.mel import log_mel, mel_filterbank, standardise_frames

Tokens = tuple[torch.Tensor, torch.Tensor | None]


def build_adapter(config: ClassifierConfig) -> nn.Module:
    """The adapter of a configuration."""
    match config.input, config.adapter:
        case ImageInput() as image, Pixels():
            return PixelAdapter(image)
        case ImageInput() as image, Patches() as patches:
            return PatchAdapter(image, patches)
        case ImageInput() as image, Conv() as conv:
            return ConvAdapter(image, conv)
        case AudioInput() as audio, Chunks() as chunks:
            return ChunkAdapter(audio, chunks)
        case AudioInput() as audio, Mel() as mel:
            return MelAdapter(audio, mel)
    raise AssertionError("refused by ClassifierConfig")


def _check(
    inputs: torch.Tensor, mask: torch.Tensor | None, shape: tuple[int, ...], integer: torch.dtype
) -> None:
    """Raises ValueError for inputs of another shape (after the batch) or dtype, or such masks."""
    if inputs.shape[1:] != shape:
        expected = ", ".join(str(size) for size in ("batch", *shape))
        raise ValueError(f"inputs of shape {list(inputs.shape)}: expected [{expected}]")
    if inputs.dtype != integer and not inputs.is_floating_point():
        raise ValueError(f"inputs of dtype {inputs.dtype}: expected {integer} or floating")
    mask_shape = inputs.shape[:3]  # [batch, height, width] of images, [batch, num_samples] of sound
    if mask is not None and (mask.shape != mask_shape or mask.dtype != torch.bool):
        raise ValueError(
            f"mask of shape {list(mask.shape)} and dtype {mask.dtype}: expected torch.bool of "
            f"shape {list(mask_shape)}"
        )


class ImageStandardiser(nn.Module):
    """Images to float32 (image - mean) / std, invalid pixels to zero."""

    def __init__(self, image: ImageInput) -> None:
        super().__init__()
        self.shape = (image.height, image.width, image.channels)
        self.mean = Float32Constant(torch.tensor(image.mean))
        self.std = Float32Constant(torch.tensor(image.std))

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """images `[batch, height, width, channels]`, uint8 or floating; mask without channels."""
        _check(images, mask, self.shape, torch.uint8)
        scale = 1.0 if images.is_floating_point() else 1 / 255
        standardised = (images.float() * scale - self.mean()) / self.std()
        if mask is None:
            return standardised
        return standardised.masked_fill(~mask.unsqueeze(-1), 0.0)


class PixelAdapter(nn.Module):
    """One token per pixel: its channels."""

    def __init__(self, image: ImageInput) -> None:
        super().__init__()
        self.standardise = ImageStandardiser(image)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Content `[batch, height * width, channels]`."""
        content = self.standardise(images, mask).flatten(1, 2)
        return content, None if mask is None else mask.flatten(1)


class PatchAdapter(nn.Module):
    """One token per square patch: its pixels in the order (row, column, channel)."""

    def __init__(self, image: ImageInput, patches: Patches) -> None:
        super().__init__()
        self.standardise = ImageStandardiser(image)
        self.patch_size = patches.patch_size

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Content `[batch, patches, patch_size * patch_size * channels]`."""
        content = self._patches(self.standardise(images, mask))
        return content, None if mask is None else self._patches(mask.unsqueeze(-1)).any(dim=-1)

    def _patches(self, images: torch.Tensor) -> torch.Tensor:
        """`[batch, height, width, channels]` to `[batch, patches, pixels * channels]`."""
        batch, height, width, channels = images.shape
        size = self.patch_size
        grid = images.view(batch, height // size, size, width // size, size, channels)
        return grid.transpose(2, 3).flatten(3).flatten(1, 2)


class ConvAdapter(nn.Module):
    """5×5 convolution, normalisation, GELU, 2×2 max-pool, 3×3 convolution.

    Normalises each sample by itself (GroupNorm with one group) and never over the batch, so that
    a data-parallel step equals the same step on the whole batch.
    """

    def __init__(self, image: ImageInput, conv: Conv) -> None:
        super().__init__()
        self.standardise = ImageStandardiser(image)
        self.stem = nn.Conv2d(image.channels, conv.num_channels, kernel_size=5, padding=2)
        self.norm = nn.GroupNorm(1, conv.num_channels)
        self.activation = nn.GELU(approximate="tanh")
        self.pool = nn.MaxPool2d(kernel_size=2, ceil_mode=True)
        self.mix = nn.Conv2d(conv.num_channels, conv.num_channels, kernel_size=3, padding=1)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Content `[batch, ceil(height / 2) * ceil(width / 2), num_channels]`."""
        standardised = self.standardise(images, mask).permute(0, 3, 1, 2)
        features = self.stem(standardised.to(self.stem.weight.dtype))
        features = self.mix(self.pool(self.activation(self.norm(features))))
        content = features.flatten(2).transpose(1, 2)
        if mask is None:
            return content, None
        return content, self.pool(mask.float().unsqueeze(1)).flatten(1) > 0


class ChunkAdapter(nn.Module):
    """One token per run of raw samples, the last one zero-padded (paper, section 4.2)."""

    def __init__(self, audio: AudioInput, chunks: Chunks) -> None:
        super().__init__()
        self.num_samples = audio.num_samples
        self.chunk_size = chunks.chunk_size

    def forward(self, samples: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Content `[batch, ceil(num_samples / chunk_size), chunk_size]`."""
        content = self._chunks(_waveform(samples, mask, self.num_samples))
        return content, None if mask is None else self._chunks(mask).any(dim=-1)

    def _chunks(self, samples: torch.Tensor) -> torch.Tensor:
        padding = (0, -self.num_samples % self.chunk_size)
        return F.pad(samples, padding).unflatten(-1, (-1, self.chunk_size))


class MelAdapter(nn.Module):
    """One token per log-mel frame, standardised over the sample's valid frames; all in float32."""

    def __init__(self, audio: AudioInput, mel: Mel) -> None:
        super().__init__()
        self.num_samples = audio.num_samples
        self.window_length = mel.window_length(audio.sample_rate)
        self.hop_length = mel.hop_length(audio.sample_rate)
        covered = self.window_length + (mel.num_frames(audio) - 1) * self.hop_length
        self.padding = (0, covered - audio.num_samples)
        self.fft_size = mel.fft_size(audio.sample_rate)
        self.window = Float32Constant(torch.hann_window(self.window_length))
        self.filterbank = Float32Constant(
            mel_filterbank(mel.num_mels, self.fft_size, audio.sample_rate)
        )

    def forward(self, samples: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Content `[batch, frames, num_mels]`; frame t starts at sample t * hop length."""
        frames = self._frames(_waveform(samples, mask, self.num_samples))
        valid = None if mask is None else self._frames(mask).any(dim=-1)
        with torch.autocast(frames.device.type, enabled=False):
            log_mels = log_mel(frames * self.window(), self.filterbank(), self.fft_size)
            return standardise_frames(log_mels, valid), valid

    def _frames(self, samples: torch.Tensor) -> torch.Tensor:
        """`[batch, num_samples]` to `[batch, frames, window_length]`, zero-padded at the end."""
        return F.pad(samples, self.padding).unfold(-1, self.window_length, self.hop_length)


def _waveform(samples: torch.Tensor, mask: torch.Tensor | None, num_samples: int) -> torch.Tensor:
    """Sound `[batch, num_samples]` as float32, int16 scaled to [-1, 1), invalid samples zero."""
    _check(samples, mask, (num_samples,), torch.int16)
    scale = 1.0 if samples.is_floating_point() else 1 / 32768
    waveform = samples.float() * scale
    return waveform if mask is None else waveform.masked_fill(~mask, 0.0)
