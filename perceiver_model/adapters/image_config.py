"""The configuration of images and of the adapters that read them. It does not import torch."""

import math
from typing import Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.adapters.residual_config import (
    Stages,
    stages_channels,
    stages_flops,
    stages_grid,
)
from perceiver_model.adapters.video_config import FeatureMapInput, VideoInput
from perceiver_model.config_checks import (
    Count,
    Number,
    PositiveNumber,
    check_length,
    config_dataclass,
    refusal,
)
from perceiver_model.layer_flops import matmul_flops


@config_dataclass
class ImageInput:
    """Images `[batch, height, width, channels]`, uint8, or floating point in [0, 1].

    The images are standardised as `(image - mean) / std`, on the scale of [0, 1].

    Attributes:
        kind: Must be `image`.
        height: The number of pixel rows, at least 1.
        width: The number of pixel columns, at least 1.
        channels: The number of channels of a pixel, at least 1.
        mean: One number for each channel, or one for all channels.
        std: One number above 0 for each channel, or one for all channels.
    """

    kind: Literal["image"] = "image"
    height: Count
    width: Count
    channels: Count = 3
    mean: tuple[Number, ...] = (0.5,)
    std: tuple[PositiveNumber, ...] = (0.5,)

    def __post_init__(self) -> None:
        check_length(self, "mean", 1, self.channels)
        check_length(self, "std", 1, self.channels)

    @property
    def grid(self) -> tuple[int, ...]:
        """The numbers of rows and columns."""
        return self.height, self.width


@config_dataclass
class PixelsConfig(AdapterBase):
    """One token per pixel of an image, a feature map or a video frame (paper, section 4.1).

    Attributes:
        kind: Must be `pixels`.
        num_channels: The number of channels that a learned linear layer gives to each pixel, at
            least 1. Perceiver IO uses this 1 × 1 convolution together with learned positions (IO,
            appendix). None means no linear layer.
    """

    reads = (ImageInput, FeatureMapInput, VideoInput)

    kind: Literal["pixels"] = "pixels"
    num_channels: Count | None = None

    def token_grid(self, pixels: ImageInput | FeatureMapInput | VideoInput) -> tuple[int, ...]:
        """Return the grid of the input."""
        return pixels.grid

    def content_channels(self, pixels: ImageInput | FeatureMapInput | VideoInput) -> int:
        """Return `num_channels`, or the channels of a pixel if there is no linear layer."""
        return self.num_channels or pixels.channels

    def flops(self, pixels: ImageInput | FeatureMapInput | VideoInput) -> int:
        """Return the FLOPs of the linear layer."""
        if self.num_channels is None:
            return 0
        return matmul_flops(math.prod(pixels.grid), pixels.channels, self.num_channels)


@config_dataclass
class PatchesConfig(AdapterBase):
    """One token per square patch of pixels. The patches must tile the image.

    Attributes:
        kind: Must be `patches`.
        patch_size: The side of a patch in pixels, a divisor of the image's height and width.
    """

    reads = (ImageInput,)

    kind: Literal["patches"] = "patches"
    patch_size: Count

    def check(self, image: ImageInput) -> None:
        """Check that the patches tile the image.

        Raises:
            ValueError: If `patch_size` does not divide the height and the width.
        """
        if image.height % self.patch_size or image.width % self.patch_size:
            size = f"{image.height} × {image.width}"
            raise refusal(self, "patch_size", f"a divisor of the image's height and width, {size}")

    def token_grid(self, image: ImageInput) -> tuple[int, ...]:
        """Return the numbers of patches along the height and the width."""
        return image.height // self.patch_size, image.width // self.patch_size

    def content_channels(self, image: ImageInput) -> int:
        """Return the number of pixels in a patch times the channels of a pixel."""
        return self.patch_size * self.patch_size * image.channels


@config_dataclass
class ConvConfig(AdapterBase):
    """A small convolutional front end: one token per 2 × 2 pixels.

    It is a smaller version of Perceiver IO's "conv + maxpool" preprocessing (arXiv 2107.14795,
    section 4.5). A set of few images learns more with some residual blocks behind it: a deeper
    convolutional stem gives what attention would have to learn from many images (Hassani et al.,
    arXiv 2104.05704).

    Attributes:
        kind: Must be `conv`.
        num_channels: The number of channels of both convolutions and of a token, at least 1.
        stages: The number of residual blocks of each stage behind the convolutions, each at least
            1; empty for none. Every stage but the first halves the grid and doubles the channels.
    """

    reads = (ImageInput,)

    kind: Literal["conv"] = "conv"
    num_channels: Count = 32
    stages: Stages = ()

    def token_grid(self, image: ImageInput) -> tuple[int, ...]:
        """Return half the image's rows and columns, rounded up, and halved again by the stages."""
        return stages_grid(self._pooled(image), self.stages)

    def content_channels(self, image: ImageInput) -> int:
        """Return the number of channels of the convolutions, or of the last stage."""
        return stages_channels(self.num_channels, self.stages)

    def flops(self, image: ImageInput) -> int:
        """Return the FLOPs of the convolutions."""
        channels, pooled = self.num_channels, self._pooled(image)
        first = matmul_flops(image.height * image.width, 5 * 5 * image.channels, channels)
        second = matmul_flops(math.prod(pooled), 3 * 3 * channels, channels)
        return first + second + stages_flops(pooled, channels, self.stages)

    def _pooled(self, image: ImageInput) -> tuple[int, int]:
        return math.ceil(image.height / 2), math.ceil(image.width / 2)


@config_dataclass
class ConvStemConfig(AdapterBase):
    """Perceiver IO's "2D conv + maxpool" (IO, section 4.5): one token per 4 × 4 pixels.

    Attributes:
        kind: Must be `conv_stem`.
        num_channels: The number of channels of the convolution and of a token, at least 1.
        padding: `same` is DeepMind's choice, TensorFlow's SAME padding. It makes one token per 4 ×
            4 pixels, rounded up (3,136 tokens at 224 × 224). `valid` is the choice of transformers:
            3 pixels on each side before the convolution, and none before the pooling (3,025 tokens
            at 224 × 224). The windows of the tokens then lie at other pixels.
        norm: `batch` is DeepMind's choice: batch normalisation over the batch of one process. The
            command line refuses it. `group` normalises each sample alone, so the result does not
            depend on how a batch is split between processes.
    """

    reads = (ImageInput,)

    kind: Literal["conv_stem"] = "conv_stem"
    num_channels: Count = 64
    padding: Literal["same", "valid"] = "same"
    norm: Literal["batch", "group"] = "batch"

    def check(self, image: ImageInput) -> None:
        """Check that the image is large enough for the pooling without padding.

        Raises:
            ValueError: If `padding` is "valid" and a side of the image is below 5 pixels.
        """
        if self.padding == "valid" and min(image.height, image.width) < 5:
            size = f"{image.height} × {image.width}"
            raise refusal(self, "padding", f"same for an image below 5 × 5, such as {size}")

    def token_grid(self, image: ImageInput) -> tuple[int, ...]:
        """Return the numbers of rows and columns after the convolution and the pooling."""
        convolved = math.ceil(image.height / 2), math.ceil(image.width / 2)
        if self.padding == "same":
            return math.ceil(convolved[0] / 2), math.ceil(convolved[1] / 2)
        return (convolved[0] - 1) // 2, (convolved[1] - 1) // 2

    def content_channels(self, image: ImageInput) -> int:
        """Return the number of channels of the convolution."""
        return self.num_channels

    def flops(self, image: ImageInput) -> int:
        """Return the FLOPs of the convolution."""
        convolved = math.ceil(image.height / 2) * math.ceil(image.width / 2)
        return matmul_flops(convolved, 7 * 7 * image.channels, self.num_channels)
