"""The format that every film is brought to. This configuration does not import PyAV."""

from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from perceiver_model.config_checks import KEEP_INTEGERS, Count, PositiveNumber, config_dataclass
from pipeline.media.format import MediaFormat


@config_dataclass
class VideoFormat(MediaFormat):
    """Clips of a film: `num_frames` frames of one size, `frames_per_second` in a second.

    Attributes:
        num_frames: The frames in a clip.
        height: The height in pixels.
        width: The width in pixels.
        channels: 1 (grey) or 3 (RGB).
        frames_per_second: The rate at which films are sampled, whatever their own rate.
        resize: `crop`, `pad` or `stretch`, as for images.
        clips: `first` takes only the first clip of a film, `all` cuts the whole film into clips.
        stride_seconds: The time from the start of a clip to the start of the next, rounded to whole
            sampled frames. None means that clips follow each other without overlap. Only for
            `clips` = `all`.
        pad_short: What to do with a film that is shorter than one clip. If true, its last frame is
            repeated to fill the clip; if false, the film is rejected. The rest after the last whole
            clip of a film is dropped in both cases.
        max_seconds: The longest film for `all`; longer ones are rejected. `first` decodes only one
            clip and ignores this.
        max_pixels: The most pixels in a frame; films with more are rejected.
    """

    modality: ClassVar[str] = "video"

    num_frames: Count
    height: Count
    width: Count
    channels: Literal[1, 3] = 3
    frames_per_second: Annotated[float, Field(ge=0.001, le=1000), KEEP_INTEGERS] = 8.0
    resize: Literal["crop", "pad", "stretch"] = "crop"
    clips: Literal["first", "all"] = "first"
    stride_seconds: PositiveNumber | None = None
    pad_short: bool = False
    max_seconds: PositiveNumber = 4 * 3600.0
    max_pixels: Count = 50_000_000

    def __post_init__(self) -> None:
        if self.stride_seconds is not None:
            if self.clips == "first":
                raise ValueError(
                    f"stride_seconds is {self.stride_seconds}, but clips is 'first'; "
                    "give clips: all, or leave stride_seconds out"
                )
            if round(Fraction(str(self.stride_seconds)) * self.rate) < 1:
                raise ValueError(
                    f"stride_seconds is {self.stride_seconds}; at frames_per_second="
                    f"{self.frames_per_second}; must be at least {float(1 / self.rate):g}"
                )
        if self.seconds > self.max_seconds:
            raise ValueError(
                f"max_seconds is {self.max_seconds}; a clip alone lasts {float(self.seconds):g}"
            )

    @property
    def rate(self) -> Fraction:
        """The number of sampled frames per second, exactly."""
        return Fraction(str(self.frames_per_second))

    @property
    def seconds(self) -> Fraction:
        """The length of a clip in seconds, with the duration of its last frame."""
        return self.num_frames / self.rate

    @property
    def stride_frames(self) -> int:
        """The number of sampled frames from the start of a clip to the start of the next."""
        if self.stride_seconds is None:
            return self.num_frames
        return round(Fraction(str(self.stride_seconds)) * self.rate)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of a clip: frames, rows, columns and channels."""
        return self.num_frames, self.height, self.width, self.channels
