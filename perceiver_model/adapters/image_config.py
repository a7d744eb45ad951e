"""Images, and the adapters that read them: configuration, free of torch."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.adapters.video_config import FeatureMapInput, VideoInput
from perceiver_model.config_checks import (
    FORBID_EXTRA,
    check_numbers,
    check_one_of,
    check_positive_integers,
    refusal,
)


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """Images `[batch, height, width, channels]`, uint8, or floating in [0, 1].

    They are standardised as (image - mean) / std, on the scale of [0, 1].

    Attributes:
        kind: must be `image`.
        height: rows, at least 1.
        width: columns, at least 1.
        channels: channels of a pixel, at least 1.
        mean: one number for every channel, or one for all channels.
        std: one number above 0 for every channel, or one for all channels.
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
class Pixels(AdapterBase):
    """One token per pixel of an image (paper, section 4.1), a feature map, or every video frame.

    Attributes:
        kind: must be `pixels`.
        num_channels: channels that a learned linear layer makes of each pixel, at least 1 (IO,
            appendix: the 1 × 1 convolution beside learned positions). None leaves the layer out.
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
    """One token per square of `patch_size` × `patch_size` pixels, which must tile the image.

    Attributes:
        kind: must be `patches`.
        patch_size: side of a square, in pixels; a divisor of the image's height and width.
    """

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

    Attributes:
        kind: must be `conv`.
        num_channels: channels of the convolutions and so of a token, at least 1.
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

    Attributes:
        kind: must be `conv_stem`.
        num_channels: channels of the convolution and so of a token, at least 1.
        padding: `same` is DeepMind's choice, TensorFlow's SAME: one token per 4 × 4 pixels, rounded
            up (3,136 tokens at 224²). `valid` is how transformers pads: 3 pixels on each side
            before the convolution and none before the pooling (3,025 tokens at 224²), which puts
            the window of every token elsewhere.
        norm: `batch` is DeepMind's batch normalisation, over the batch of one process; the verbs
            refuse it. `group` normalises each sample by itself, so the result does not depend on
            how a batch is spread over processes.
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
