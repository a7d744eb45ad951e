"""The format that every film is brought to. This configuration does not import PyAV."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

from perceiver_model.config_checks import check_integers, check_number, check_one_of
from pipeline.media.format import MediaFormat


@dataclass(frozen=True, kw_only=True)
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

    num_frames: int
    height: int
    width: int
    channels: Literal[1, 3] = 3
    frames_per_second: float = 8.0
    resize: Literal["crop", "pad", "stretch"] = "crop"
    clips: Literal["first", "all"] = "first"
    stride_seconds: float | None = None
    pad_short: bool = False
    max_seconds: float = 4 * 3600.0
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        check_integers(self, "num_frames", "height", "width", "max_pixels", least=1)
        check_one_of(self, "channels", 1, 3)
        check_one_of(self, "resize", "crop", "pad", "stretch")
        check_one_of(self, "clips", "first", "all")
        check_one_of(self, "pad_short", True, False)
        check_number(self, "frames_per_second", least=0.001, most=1000.0)
        check_number(self, "max_seconds", above=0.0)
        if self.stride_seconds is not None:
            check_number(self, "stride_seconds", above=0.0)
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
