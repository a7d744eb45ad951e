"""A film's sound, read span by span with the memory of one span."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from pipeline.media.audio.sources import mono
from pipeline.media.errors import MediaError
from pipeline.media.video.film import Track

MAX_DRIFT = Fraction(1, 10)
"""The largest difference in seconds between a frame's time and the end of the previous frame that
is ignored. Containers round times, but their content has no gaps."""


class Soundtrack:
    """Spans of a track as mono float32 at the track's own sample rate.

    Attributes:
        rate: The sample rate in hertz; 0 if the track has no sound.
    """

    def __init__(self, track: Track) -> None:
        self.rate = 0
        self._frames = self._mono(track)
        # Pieces of sound, each with the index of its first sample, counted from time zero.
        self._pieces: deque[tuple[int, np.ndarray]] = deque()
        self._next: tuple[int, np.ndarray] | None = None
        self._advance()

    def read(self, start: Fraction, seconds: float) -> np.ndarray:
        """Read a span of sound. Spans must be read in order of time.

        Args:
            start: The start of the span in seconds of the film's clock.
            seconds: The length of the span.

        Returns:
            float32 `[samples]` in [-1, 1]. Gaps in the track are silent. The result is shorter if
            the track ends within the span.

        Raises:
            MediaError: A packet cannot be decoded.
        """
        first, count = round(start * self.rate), round(seconds * self.rate)
        while self._next is not None and self._next[0] < first + count:
            self._pieces.append(self._next)
            self._advance()
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) <= first:
            self._pieces.popleft()
        sound = np.zeros(count, np.float32)
        end = count if self._next is not None else 0
        for index, piece in self._pieces:
            begin, stop = max(first, index), min(first + count, index + len(piece))
            if begin < stop:
                sound[begin - first : stop - first] = piece[begin - index : stop - index]
                end = max(end, stop - first)
        return sound[:end]

    def _advance(self) -> None:
        self._next = next(self._frames, None)

    def _mono(self, track: Track) -> Iterator[tuple[int, np.ndarray]]:
        """Yield pieces of sound with the index of their first sample, in order, without overlap."""
        index: int | None = None
        for time, frame in track.frames():
            if not frame.samples:
                continue
            if self.rate not in (0, frame.sample_rate) or not 0 < frame.sample_rate <= 768_000:
                raise MediaError(f"its sound's rate is {frame.sample_rate} Hz after {self.rate} Hz")
            self.rate = frame.sample_rate
            shown = round(time * self.rate)
            if index is None or shown - index > MAX_DRIFT * self.rate:
                index = shown
            yield index, mono(frame)
            index += frame.samples
