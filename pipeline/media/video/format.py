"""What every film becomes: configuration, free of PyAV."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

from pipeline.media.checks import check_finite, check_one_of, check_whole


@dataclass(frozen=True, kw_only=True)
class VideoFormat:
    """Clips of a film: `num_frames` frames, `frames_per_second` apart, of one size.

    Attributes:
        num_frames: frames of a clip.
        height, width: size in pixels.
        channels: 1 (grey) or 3 (RGB).
        frames_per_second: at which films are sampled, whatever their own rate.
        resize: `crop`, `pad` or `stretch`, as of images.
        clips: `first` takes a film's first clip alone, `all` cuts the whole film into clips.
        stride_seconds: from the start of a clip to the start of the next, rounded to whole sampled
            frames; null for clips that follow each other without overlap. Of `all` only.
        pad_short: what a film shorter than one clip becomes: a clip that ends with its last frame
            repeated, or, if false, a refusal. What remains after a film's last whole clip is
            dropped in both cases.
        max_seconds: films that last longer are refused by `all`; `first` decodes one clip
            alone.
        max_pixels: films with more pixels in a frame are refused.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
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
        check_whole(self, "num_frames", "height", "width", "max_pixels", least=1)
        check_one_of(self, "channels", 1, 3)
        check_one_of(self, "resize", "crop", "pad", "stretch")
        check_one_of(self, "clips", "first", "all")
        check_one_of(self, "pad_short", True, False)
        check_finite(self, "frames_per_second", least=0.001, most=1000.0)
        check_finite(self, "max_seconds", above=0.0)
        if self.stride_seconds is not None:
            check_finite(self, "stride_seconds", above=0.0)
            if self.clips == "first":
                raise ValueError(
                    f"stride_seconds is {self.stride_seconds}, but clips is 'first'; "
                    "give clips: all, or leave stride_seconds out"
                )
            if round(Fraction(str(self.stride_seconds)) * self.rate) < 1:
                raise ValueError(
                    f"stride_seconds is {self.stride_seconds}; at frames_per_second="
                    f"{self.frames_per_second} it must be at least {float(1 / self.rate):g}"
                )
        if self.seconds > self.max_seconds:
            raise ValueError(
                f"max_seconds is {self.max_seconds}; a clip alone lasts {float(self.seconds):g}"
            )

    @property
    def rate(self) -> Fraction:
        """Sampled frames in a second, exactly."""
        return Fraction(str(self.frames_per_second))

    @property
    def seconds(self) -> Fraction:
        """Length of a clip: from its first frame to where the next after its last would lie."""
        return self.num_frames / self.rate

    @property
    def stride_frames(self) -> int:
        """Sampled frames from the start of a clip to the start of the next."""
        if self.stride_seconds is None:
            return self.num_frames
        return round(Fraction(str(self.stride_seconds)) * self.rate)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a clip: frames, rows, columns and channels."""
        return self.num_frames, self.height, self.width, self.channels

    @property
    def member(self) -> str:
        """Name of the shard member that holds a clip."""
        return "video.npy"
