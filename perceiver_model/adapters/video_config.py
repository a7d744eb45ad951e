"""Video and the feature maps of a user's backbone as inputs: configuration, free of torch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.config_checks import (
    FORBID_EXTRA,
    check_numbers,
    check_positive_integers,
    refusal,
)


@dataclass(frozen=True, kw_only=True)
class VideoInput:
    """Videos `[batch, num_frames, height, width, channels]`, uint8, or floating in [0, 1].

    They are standardised as (video - mean) / std, on the scale of [0, 1].

    Attributes:
        kind: must be `video`.
        num_frames: frames, at least 1.
        height: rows of a frame, at least 1.
        width: columns of a frame, at least 1.
        channels: channels of a pixel, at least 1.
        mean: one number for every channel, or one for all channels.
        std: one number above 0 for every channel, or one for all channels.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["video"] = "video"
    num_frames: int
    height: int
    width: int
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_frames", "height", "width", "channels")
        check_numbers(self, "mean", (1, self.channels))
        check_numbers(self, "std", (1, self.channels), above=0)

    @property
    def grid(self) -> tuple[int, ...]:
        """Frames, rows and columns."""
        return self.num_frames, self.height, self.width


@dataclass(frozen=True, kw_only=True)
class FeatureMapInput:
    """Feature maps of images, `[batch, height, width, channels]`, floating, as a backbone gives.

    They are read as they are, without standardisation.

    Attributes:
        kind: must be `feature_map`.
        height: rows, at least 1.
        width: columns, at least 1.
        channels: channels of each place of the map, at least 1.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["feature_map"] = "feature_map"
    height: int
    width: int
    channels: int

    def __post_init__(self) -> None:
        check_positive_integers(self, "height", "width", "channels")

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.height, self.width


@dataclass(frozen=True, kw_only=True)
class SpaceTimePatches(AdapterBase):
    """One token per box of `num_frames` × `height` × `width` pixels, which must tile the video.

    The defaults are the paper's (section 4.2): 32 frames of 224 × 224 pixels in 12,544 tokens.

    Attributes:
        kind: must be `space_time_patches`.
        num_frames: frames of a box, a divisor of the video's frames.
        height: rows of a box in pixels, a divisor of the video's height.
        width: columns of a box in pixels, a divisor of the video's width.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA
    reads = (VideoInput,)

    kind: Literal["space_time_patches"] = "space_time_patches"
    num_frames: int = 2
    height: int = 8
    width: int = 8

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_frames", "height", "width")

    def check(self, video: VideoInput) -> None:
        """Raises ValueError unless patches tile the video."""
        for field in ("num_frames", "height", "width"):
            if getattr(video, field) % getattr(self, field):
                allowed = f"a divisor of the video's {field}, {getattr(video, field)}"
                raise refusal(self, field, allowed)

    def token_grid(self, video: VideoInput) -> tuple[int, ...]:
        """Patches along time, rows and columns."""
        return (
            video.num_frames // self.num_frames,
            video.height // self.height,
            video.width // self.width,
        )

    def content_channels(self, video: VideoInput) -> int:
        """The pixels of a patch times their channels."""
        return self.num_frames * self.height * self.width * video.channels
