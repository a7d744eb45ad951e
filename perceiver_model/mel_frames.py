"""The frames and bands of a log-mel spectrogram. This module does not import torch."""

import math

from perceiver_model.config_checks import Count, PositiveNumber, config_dataclass, refusal


@config_dataclass
class MelFrames:
    """The frames and bands of a log-mel spectrogram.

    The default window and hop are those of VGGish, AudioSet's reference front end (Hershey et al.,
    arXiv 1609.09430).

    Attributes:
        num_mels: The number of mel bands from 0 Hz to half the sample rate, at least 1.
        window: The length of a frame in seconds, above 0.
        hop: The time from the start of one frame to the start of the next, in seconds. It is above
            0 and at most `window`.
    """

    num_mels: Count = 64
    window: PositiveNumber = 0.025
    hop: PositiveNumber = 0.010

    def __post_init__(self) -> None:
        if self.hop > self.window:
            raise refusal(self, "hop", f"at most window = {self.window}, or it would skip samples")

    def window_length(self, sample_rate: int) -> int:
        """Return the number of samples in a frame at a sample rate in Hz."""
        return max(1, round(self.window * sample_rate))

    def hop_length(self, sample_rate: int) -> int:
        """Return the number of samples between the starts of two frames at a sample rate in Hz."""
        return max(1, round(self.hop * sample_rate))

    def fft_size(self, sample_rate: int) -> int:
        """Return the smallest power of two that holds a frame at a sample rate in Hz."""
        return 1 << (self.window_length(sample_rate) - 1).bit_length()

    def num_frames(self, sample_rate: int, num_samples: int) -> int:
        """Return the number of frames that cover every sample; the last is padded with zeros."""
        beyond_first = max(0, num_samples - self.window_length(sample_rate))
        return 1 + math.ceil(beyond_first / self.hop_length(sample_rate))

    def check_rate(self, sample_rate: int) -> None:
        """Check that the lowest mel filter, the narrowest one, cannot fall between two FFT bins.

        Raises:
            ValueError: If the filter is not wider than the distance between bins.
        """
        nyquist = sample_rate / 2
        lowest_filter_width = 700 * ((1 + nyquist / 700) ** (2 / (self.num_mels + 1)) - 1)
        bin_spacing = sample_rate / self.fft_size(sample_rate)
        if lowest_filter_width <= bin_spacing:
            raise refusal(
                self,
                "num_mels",
                f"lower, or window longer: at {sample_rate} Hz the lowest filter is "
                f"{lowest_filter_width:.1f} Hz wide and FFT bins are {bin_spacing:.1f} Hz apart",
            )
