"""`StepClock`: the time of steps, and the part of it spent waiting for data."""

from collections.abc import Iterator

import pytest

from pipeline.training import step_clock
from pipeline.training.step_clock import StepClock


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the clock reads, in seconds; a test moves it."""
    now = [100.0]
    monkeypatch.setattr(step_clock.time, "perf_counter", lambda: now[0])
    return now


def test_an_interval_holds_the_steps_and_the_wait_for_data(hands: list[float]) -> None:
    def batches() -> Iterator[int]:
        for batch in range(2):
            hands[0] += 3
            yield batch

    clock = StepClock()
    for _ in clock.timed(batches()):
        hands[0] += 5
        clock.step()
    hands[0] += 100
    clock.leave_out(100)  # a checkpoint
    found = clock.read()
    assert (found.steps, found.seconds, found.data_seconds) == (2, 16.0, 6.0)
    assert found.step_seconds == 8.0
    assert found.data_share == 6 / 16


def test_a_reading_starts_the_next_interval(hands: list[float]) -> None:
    clock = StepClock()
    hands[0] += 2
    clock.step()
    clock.read()
    assert (empty := clock.read()).steps == 0
    assert empty.step_seconds == empty.data_share == 0.0
    hands[0] += 7
    clock.begin()
    assert clock.read().seconds == 0
