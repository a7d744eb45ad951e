"""The time that the steps of a training take, and the part of it spent waiting for data."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Interval:
    """The time of the steps since the last reading of a `StepClock`, on this rank.

    Attributes:
        steps: The number of optimizer steps.
        seconds: Their wall time, in seconds, without evaluations and checkpoints.
        data_seconds: The part of it that the training waited for batches.
    """

    steps: int
    seconds: float
    data_seconds: float

    @property
    def step_seconds(self) -> float:
        """The mean time of a step, in seconds; 0 without a step."""
        return self.seconds / self.steps if self.steps else 0.0

    @property
    def data_share(self) -> float:
        """The share of the time, 0 to 1, that was spent waiting for data."""
        return min(1.0, self.data_seconds / self.seconds) if self.seconds else 0.0


class StepClock:
    """Measures the steps of a training with the host's clock.

    It never waits for the device. An interval is exact if something at its end does wait, as the
    reading of a loss does.
    """

    def __init__(self) -> None:
        self._steps, self._data_seconds, self._paused = 0, 0.0, 0.0
        self._begin = time.perf_counter()

    def begin(self) -> None:
        """Start a new interval now, as at the start of an epoch."""
        self.read()

    def timed(
        self, items: Iterator[Item], device_works: Callable[[], bool] | None = None
    ) -> Iterator[Item]:
        """Yield the items, and count the time of getting each as time spent waiting for data.

        Args:
            items: The items.
            device_works: Says whether the device still has work when an item has been got; then
                nothing waited for it. None means that the device is this host.
        """
        while True:
            asked = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            if device_works is None or not device_works():
                self._data_seconds += time.perf_counter() - asked
            yield item

    def step(self) -> None:
        """Count one optimizer step."""
        self._steps += 1

    def leave_out(self, seconds: float) -> None:
        """Leave a time out of the interval, such as that of a checkpoint."""
        self._paused += seconds

    def read(self) -> Interval:
        """Return the interval since the last reading, and start the next one."""
        now = time.perf_counter()
        seconds = max(0.0, now - self._begin - self._paused)
        found = Interval(self._steps, seconds, self._data_seconds)
        self._steps, self._data_seconds, self._paused, self._begin = 0, 0.0, 0.0, now
        return found
