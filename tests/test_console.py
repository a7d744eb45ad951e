"""Rates in bars are true: of the work that was done here and now."""

import io

import pytest

from pipeline.runs.console import Bar, Console, Estimate


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pipeline.runs.console.time.monotonic", clock)
    return clock


def test_a_log_gets_a_line_at_intervals_and_no_more(clock: Clock) -> None:
    file = io.StringIO()
    with Console(file, file).bar("train", 1000, "samples") as bar:
        for _ in range(14):
            clock.now += 5
            bar.advance(10)
        lines = file.getvalue().splitlines()
        assert len(lines) == 2
        assert "60/1000" in lines[0] and "120/1000" in lines[1]
        assert "2 samples/s" in lines[1]
    assert len(file.getvalue().splitlines()) == 3, "the last one says how it ended"


def test_the_work_s_own_estimate_is_shown_and_counts_down(clock: Clock) -> None:
    file = io.StringIO()
    with Console(file, file).bar("train", 1000, "samples") as bar:
        estimate = Estimate(40.0, 90.0)
        bar.update(100, estimate=estimate)
        clock.now += 40
        bar.update(100, estimate=estimate)
        assert "40 samples/s" in file.getvalue()
        assert "0:00:50" in file.getvalue()


def bar_of(console: Console, completed: float = 0.0, total: float = 1000) -> Bar:
    return console.bar("train", total, "samples", completed=completed).__enter__()


def test_work_done_before_does_not_count(clock: Clock) -> None:
    bar = bar_of(Console(io.StringIO(), io.StringIO()), completed=800)
    assert bar.rate() is None
    clock.now += 10
    bar.update(850)
    assert bar.rate() == 5
    bar.skip(100)
    assert bar.rate() == 5
    clock.now += 10
    bar.advance(50)
    assert bar.rate() == 5


def test_steps_longer_than_the_window_have_a_rate(clock: Clock) -> None:
    bar = bar_of(Console(io.StringIO(), io.StringIO()))
    for step in range(1, 5):
        clock.now += 100
        bar.update(step)
        assert bar.rate() == pytest.approx(0.01)


def test_the_rate_is_that_of_the_last_half_minute(clock: Clock) -> None:
    bar = bar_of(Console(io.StringIO(), io.StringIO()))
    for _ in range(60):
        clock.now += 1
        bar.advance(1)
    for _ in range(60):
        clock.now += 1
        bar.advance(10)
    assert bar.rate() == pytest.approx(10)


def test_work_that_is_done_again_does_not_count_again(clock: Clock) -> None:
    bar = bar_of(Console(io.StringIO(), io.StringIO()))
    clock.now += 10
    bar.update(100)
    clock.now += 10
    bar.update(20)
    bar.update(100)
    assert bar.rate() == 10


def test_a_slow_rate_is_not_shown_as_none(clock: Clock) -> None:
    file = io.StringIO()
    console = Console(file, file)
    with console.bar("tune", 20, "epochs", completed=2) as bar:
        clock.now += 12
        bar.update(3, "trial 0/4", total=18)
    text = file.getvalue()
    assert "3/18" in text
    assert "0.083 epochs/s" in text
    assert "0:03:00" in text
    assert "trial 0/4" in text
