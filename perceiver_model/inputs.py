"""What a Perceiver reads, and which adapter turns it into tokens: configuration, free of torch."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from perceiver_model.adapter_config import AdapterBase
from perceiver_model.config_checks import (
    FORBID_EXTRA,
    check_number,
    check_numbers,
    check_one_of,
    check_positive_integers,
    refusal,
)
from perceiver_model.video_inputs import FeatureMapInput, VideoInput


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """Images `[batch, height, width, channels]`, uint8, or floating in [0, 1].

    They are standardised as (image - mean) / std; `mean` and `std` hold one number for every
    channel, or one for all channels, on the scale of [0, 1].
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["image"] = "image"
    height: int
    width: int
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        check_positive_integers(self, "height", "width", "channels")
        check_numbers(self, "mean", (1, self.channels))
        check_numbers(self, "std", (1, self.channels), above=0)

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.height, self.width


@dataclass(frozen=True, kw_only=True)
class AudioInput:
    """One-channel sound `[batch, num_samples]`, int16, or floating in [-1, 1].

    `sample_rate` is in Hz.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["audio"] = "audio"
    sample_rate: int
    num_samples: int

    def __post_init__(self) -> None:
        check_positive_integers(self, "sample_rate", "num_samples")


@dataclass(frozen=True, kw_only=True)
class Pixels(AdapterBase):
    """One token per pixel of an image (paper, section 4.1), a feature map, or every video frame.

    num_channels: width that a learned linear layer gives each pixel's channels (IO, appendix: the
        1 × 1 convolution beside learned positions); None leaves it out.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA
    reads = (ImageInput, FeatureMapInput, VideoInput)

    kind: Literal["pixels"] = "pixels"
    num_channels: int | None = None

    def __post_init__(self) -> None:
        if self.num_channels is not None:
            check_positive_integers(self, "num_channels")

    def token_grid(self, pixels: ImageInput | FeatureMapInput | VideoInput) -> tuple[int, ...]:
        """The input's own grid."""
        return pixels.grid

    def content_channels(self, pixels: ImageInput | FeatureMapInput | VideoInput) -> int:
        """The channels of a pixel, or those that they are projected to."""
        return self.num_channels or pixels.channels


@dataclass(frozen=True, kw_only=True)
class Patches(AdapterBase):
    """One token per square of `patch_size` × `patch_size` pixels, which must tile the image."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA
    reads = (ImageInput,)

    kind: Literal["patches"] = "patches"
    patch_size: int

    def __post_init__(self) -> None:
        check_positive_integers(self, "patch_size")

    def check(self, image: ImageInput) -> None:
        """Raises ValueError unless patches tile the image."""
        if image.height % self.patch_size or image.width % self.patch_size:
            size = f"{image.height} × {image.width}"
            raise refusal(self, "patch_size", f"a divisor of the image's height and width, {size}")

    def token_grid(self, image: ImageInput) -> tuple[int, ...]:
        """Rows and columns of patches."""
        return image.height // self.patch_size, image.width // self.patch_size

    def content_channels(self, image: ImageInput) -> int:
        """The pixels of a patch times their channels."""
        return self.patch_size * self.patch_size * image.channels


@dataclass(frozen=True, kw_only=True)
class Conv(AdapterBase):
    """Small convolutional front end: one token per 2 × 2 pixels, of `num_channels` channels.

    Perceiver IO's "conv + maxpool" preprocessing (arXiv 2107.14795, section 4.5), made smaller.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA
    reads = (ImageInput,)

    kind: Literal["conv"] = "conv"
    num_channels: int = 32

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_channels")

    def token_grid(self, image: ImageInput) -> tuple[int, ...]:
        """Half the image's rows and columns, rounded up."""
        return math.ceil(image.height / 2), math.ceil(image.width / 2)

    def content_channels(self, image: ImageInput) -> int:
        """The convolutions' channels."""
        return self.num_channels


@dataclass(frozen=True, kw_only=True)
class ConvStem(AdapterBase):
    """Perceiver IO's "2D conv + maxpool" (IO, section 4.5): one token per 4 × 4 pixels.

    padding: "same" is DeepMind's: TensorFlow's SAME, one token per 4 × 4 pixels, rounded up (3,136
        at 224²). "valid" is how transformers pads: 3 pixels on each side before the convolution,
        none before the pooling (3,025 at 224²), which puts every token's window elsewhere.
    norm: "batch" is DeepMind's batch normalisation, over the batch of one process; "group"
        normalises each sample by itself, the same however a batch is spread over processes.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA
    reads = (ImageInput,)

    kind: Literal["conv_stem"] = "conv_stem"
    num_channels: int = 64
    padding: Literal["same", "valid"] = "same"
    norm: Literal["batch", "group"] = "batch"

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_channels")
        check_one_of(self, "padding", "same", "valid")
        check_one_of(self, "norm", "batch", "group")

    def check(self, image: ImageInput) -> None:
        """Raises ValueError if there is nothing to pool without padding."""
        if self.padding == "valid" and min(image.height, image.width) < 5:
            size = f"{image.height} × {image.width}"
            raise refusal(self, "padding", f"same for an image below 5 × 5, such as {size}")

    def token_grid(self, image: ImageInput) -> tuple[int, ...]:
        """Rows and columns after the convolution and the pooling."""
        convolved = math.ceil(image.height / 2), math.ceil(image.width / 2)
        if self.padding == "same":
            return math.ceil(convolved[0] / 2), math.ceil(convolved[1] / 2)
        return (convolved[0] - 1) // 2, (convolved[1] - 1) // 2

    def content_channels(self, image: ImageInput) -> int:
        """The convolution's channels."""
        return self.num_channels


@dataclass(frozen=True, kw_only=True)
class Chunks(AdapterBase):
    """One token per `chunk_size` raw samples (paper, section 4.2: 61,440 samples → 480 × 128)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA
    reads = (AudioInput,)

    kind: Literal["chunks"] = "chunks"
    chunk_size: int = 128

    def __post_init__(self) -> None:
        check_positive_integers(self, "chunk_size")

    def token_grid(self, audio: AudioInput) -> tuple[int, ...]:
        """The number of chunks, the last one zero-padded."""
        return (math.ceil(audio.num_samples / self.chunk_size),)

    def content_channels(self, audio: AudioInput) -> int:
        """The samples of a chunk."""
        return self.chunk_size


@dataclass(frozen=True, kw_only=True)
class Mel(AdapterBase):
    """A log-mel spectrogram: one token per frame of `num_mels` channels, or one per cell.

    tokens: "frames", or "cells", one token of one channel for each frame and mel band, whose grid
        has two axes (paper, section 4.2: 4,800 inputs).
    `window` and `hop` are in seconds. The defaults are those of VGGish, AudioSet's reference
    front end (Hershey et al., arXiv 1609.09430).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA
    reads = (AudioInput,)

    kind: Literal["mel"] = "mel"
    num_mels: int = 64
    window: float = 0.025
    hop: float = 0.010
    tokens: Literal["frames", "cells"] = "frames"

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_mels")
        check_one_of(self, "tokens", "frames", "cells")
        check_number(self, "window", above=0)
        check_number(self, "hop", above=0)
        if self.hop > self.window:
            raise refusal(self, "hop", f"at most window = {self.window}, or it would skip samples")

    def window_length(self, sample_rate: int) -> int:
        """Samples in a window."""
        return max(1, round(self.window * sample_rate))

    def hop_length(self, sample_rate: int) -> int:
        """Samples from the start of one frame to the start of the next."""
        return max(1, round(self.hop * sample_rate))

    def fft_size(self, sample_rate: int) -> int:
        """Smallest power of two that holds a window."""
        return 1 << (self.window_length(sample_rate) - 1).bit_length()

    def num_frames(self, audio: AudioInput) -> int:
        """Frames that cover every sample, the last one zero-padded."""
        beyond_first = max(0, audio.num_samples - self.window_length(audio.sample_rate))
        return 1 + math.ceil(beyond_first / self.hop_length(audio.sample_rate))

    def check(self, audio: AudioInput) -> None:
        """Raises ValueError if the lowest (so narrowest) mel filter could fall between FFT bins."""
        nyquist = audio.sample_rate / 2
        lowest_filter_width = 700 * ((1 + nyquist / 700) ** (2 / (self.num_mels + 1)) - 1)
        bin_spacing = audio.sample_rate / self.fft_size(audio.sample_rate)
        if lowest_filter_width <= bin_spacing:
            raise refusal(
                self,
                "num_mels",
                f"lower, or window longer: at {audio.sample_rate} Hz the lowest filter is "
                f"{lowest_filter_width:.1f} Hz wide and FFT bins are {bin_spacing:.1f} Hz apart",
            )

    def token_grid(self, audio: AudioInput) -> tuple[int, ...]:
        """(frames,) or (frames, mel bands)."""
        frames = self.num_frames(audio)
        return (frames, self.num_mels) if self.tokens == "cells" else (frames,)

    def content_channels(self, audio: AudioInput) -> int:
        """The mel bands of a frame, or the one number of a cell."""
        return 1 if self.tokens == "cells" else self.num_mels
