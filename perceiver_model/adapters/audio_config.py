"""The configuration of sound and of the adapters that read it. It does not import torch."""

import math
from typing import Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.adapters.residual_config import (
    Stages,
    stages_channels,
    stages_flops,
    stages_grid,
)
from perceiver_model.adapters.video_config import FeatureMapInput
from perceiver_model.config_checks import Count, config_dataclass, refusal
from perceiver_model.layer_flops import matmul_flops
from perceiver_model.mel_frames import MelFrames


@config_dataclass
class AudioInput:
    """Sound of one channel, `[batch, num_samples]`, int16, or floating point in [-1, 1].

    Attributes:
        kind: Must be `audio`.
        sample_rate: The number of samples per second (Hz), at least 1.
        num_samples: The number of samples in a sound of full length, at least 1.
    """

    kind: Literal["audio"] = "audio"
    sample_rate: Count
    num_samples: Count


@config_dataclass
class ChunksConfig(AdapterBase):
    """One token per `chunk_size` raw samples.

    The paper's 61,440 samples become 480 tokens of 128 channels (paper, section 4.2).

    Attributes:
        kind: Must be `chunks`.
        chunk_size: The number of samples in a token, at least 1. The last token is padded with
            zeros.
    """

    reads = (AudioInput,)

    kind: Literal["chunks"] = "chunks"
    chunk_size: Count = 128

    def token_grid(self, audio: AudioInput) -> tuple[int, ...]:
        """Return the number of chunks, `(chunks,)`; the last chunk is padded with zeros."""
        return (math.ceil(audio.num_samples / self.chunk_size),)

    def content_channels(self, audio: AudioInput) -> int:
        """Return the number of samples in a chunk."""
        return self.chunk_size


@config_dataclass
class MelConfig(MelFrames, AdapterBase):
    """A log-mel spectrogram, with one token per frame or one per cell.

    Attributes:
        kind: Must be `mel`.
        tokens: `frames` makes one token of `num_mels` channels from each frame. `cells` makes one
            token of one channel from each mel band of each frame, so the token grid has two axes
            (paper, section 4.2: 4,800 inputs).
    """

    reads = (AudioInput,)

    kind: Literal["mel"] = "mel"
    tokens: Literal["frames", "cells"] = "frames"

    def check(self, audio: AudioInput) -> None:
        """Check that the sample rate suits the mel filters, as `check_rate` does."""
        self.check_rate(audio.sample_rate)

    def token_grid(self, audio: AudioInput) -> tuple[int, ...]:
        """Return `(frames,)`, or `(frames, num_mels)` if every cell is a token."""
        frames = self.num_frames(audio.sample_rate, audio.num_samples)
        return (frames, self.num_mels) if self.tokens == "cells" else (frames,)

    def content_channels(self, audio: AudioInput) -> int:
        """Return the number of mel bands, or 1 if every cell is a token."""
        return 1 if self.tokens == "cells" else self.num_mels

    def flops(self, audio: AudioInput) -> int:
        """Return the FLOPs of the mel filters."""
        num_bins = self.fft_size(audio.sample_rate) // 2 + 1
        num_frames = self.num_frames(audio.sample_rate, audio.num_samples)
        return matmul_flops(num_frames, num_bins, self.num_mels)


@config_dataclass
class MelConvConfig(MelFrames, AdapterBase):
    """A log-mel spectrogram, read as a picture by a small convolutional front end.

    One token stands for 2 × 2 cells of frames and bands, or for more with several stages. The
    convolutions find a pattern at any time and at any pitch. So a small set teaches more than with
    the adapter `mel`, whose latents learn each band by itself.

    Attributes:
        kind: Must be `mel_conv`.
        num_channels: The number of channels of the first convolutions, at least 1.
        stages: The number of residual blocks of each stage behind them, each at least 1; empty for
            none. Every stage but the first halves the grid and doubles the channels.
    """

    # Stored frames are a feature map of one column, whose channels are the bands.
    reads = (AudioInput, FeatureMapInput)

    kind: Literal["mel_conv"] = "mel_conv"
    num_channels: Count = 32
    stages: Stages = (1, 1)

    @property
    def mel(self) -> MelConfig:
        """The spectrogram, with one token per frame."""
        return MelConfig(num_mels=self.num_mels, window=self.window, hop=self.hop)

    def check(self, media: AudioInput | FeatureMapInput) -> None:
        """Check that the spectrogram can be computed, or that stored frames have its bands.

        Raises:
            ValueError: If a field does not fit the input.
        """
        if isinstance(media, AudioInput):
            self.check_rate(media.sample_rate)
        elif (media.width, media.channels) != (1, self.num_mels):
            size = f"{media.width} × {media.channels}"
            raise refusal(self, "num_mels", f"the bands of frames of 1 × bands; they are {size}")

    def token_grid(self, media: AudioInput | FeatureMapInput) -> tuple[int, ...]:
        """Return the numbers of tokens along time and along the bands."""
        return stages_grid(self._pooled(media), self.stages)

    def content_channels(self, media: AudioInput | FeatureMapInput) -> int:
        """Return the number of channels of the convolutions, or of the last stage."""
        return stages_channels(self.num_channels, self.stages)

    def flops(self, media: AudioInput | FeatureMapInput) -> int:
        """Return the FLOPs of the mel filters and of the convolutions."""
        channels, pooled = self.num_channels, self._pooled(media)
        mel = self.mel.flops(media) if isinstance(media, AudioInput) else 0
        first = matmul_flops(self._frames(media) * self.num_mels, 5 * 5, channels)
        second = matmul_flops(math.prod(pooled), 3 * 3 * channels, channels)
        return mel + first + second + stages_flops(pooled, channels, self.stages)

    def _frames(self, media: AudioInput | FeatureMapInput) -> int:
        if isinstance(media, AudioInput):
            return self.num_frames(media.sample_rate, media.num_samples)
        return media.height

    def _pooled(self, media: AudioInput | FeatureMapInput) -> tuple[int, int]:
        return math.ceil(self._frames(media) / 2), math.ceil(self.num_mels / 2)
