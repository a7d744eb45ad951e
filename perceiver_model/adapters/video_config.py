"""The configuration of videos and of a user's feature maps. It does not import torch."""

from typing import Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.config_checks import (
    Count,
    Number,
    PositiveNumber,
    check_length,
    config_dataclass,
    refusal,
)


@config_dataclass
class VideoInput:
    """Videos `[batch, num_frames, height, width, channels]`, uint8, or floating point in [0, 1].

    The videos are standardised as `(video - mean) / std`, on the scale of [0, 1].

    Attributes:
        kind: Must be `video`.
        num_frames: The number of frames of a video, at least 1.
        height: The number of pixel rows of a frame, at least 1.
        width: The number of pixel columns of a frame, at least 1.
        channels: The number of channels of a pixel, at least 1.
        mean: One number for each channel, or one for all channels.
        std: One number above 0 for each channel, or one for all channels.
    """

    kind: Literal["video"] = "video"
    num_frames: Count
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
        """The numbers of frames, rows and columns."""
        return self.num_frames, self.height, self.width


@config_dataclass
class FeatureMapInput:
    """Feature maps of a user's backbone, `[batch, height, width, channels]`, floating point.

    They are read unchanged, without standardisation.

    Attributes:
        kind: Must be `feature_map`.
        height: The number of rows of the map, at least 1.
        width: The number of columns of the map, at least 1.
        channels: The number of channels of a cell of the map, at least 1.
    """

    kind: Literal["feature_map"] = "feature_map"
    height: Count
    width: Count
    channels: Count

    @property
    def grid(self) -> tuple[int, ...]:
        """The numbers of rows and columns."""
        return self.height, self.width


@config_dataclass
class SpaceTimePatchesConfig(AdapterBase):
    """One token per box of pixels. The boxes must tile the video.

    The defaults are the paper's: 32 frames of 224 × 224 pixels become 12,544 tokens (section 4.2).

    Attributes:
        kind: Must be `space_time_patches`.
        num_frames: The number of frames in a box, a divisor of the video's frames.
        height: The number of pixel rows in a box, a divisor of the video's height.
        width: The number of pixel columns in a box, a divisor of the video's width.
    """

    reads = (VideoInput,)

    kind: Literal["space_time_patches"] = "space_time_patches"
    num_frames: Count = 2
    height: Count = 8
    width: Count = 8

    def check(self, video: VideoInput) -> None:
        """Check that the boxes tile the video.

        Raises:
            ValueError: If a side of a box does not divide the video's.
        """
        for field in ("num_frames", "height", "width"):
            if getattr(video, field) % getattr(self, field):
                allowed = f"a divisor of the video's {field}, {getattr(video, field)}"
                raise refusal(self, field, allowed)

    def token_grid(self, video: VideoInput) -> tuple[int, ...]:
        """Return the numbers of boxes along time, rows and columns."""
        return (
            video.num_frames // self.num_frames,
            video.height // self.height,
            video.width // self.width,
        )

    def content_channels(self, video: VideoInput) -> int:
        """Return the number of pixels in a box times the channels of a pixel."""
        return self.num_frames * self.height * self.width * video.channels
