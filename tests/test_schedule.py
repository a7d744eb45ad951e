"""The learning rate of every step."""

from itertools import pairwise

import pytest

from pipeline.config.training import ScheduleConfig, TrainingConfig
from pipeline.training.schedule import learning_rate

STEPS = 50


def rates(**schedule: object) -> list[float]:
    """Of every step of 10 epochs; the rate asked for is 2."""
    config = TrainingConfig(epochs=10, learning_rate=2.0, schedule=ScheduleConfig(**schedule))
    return [learning_rate(step, STEPS, config) for step in range(10 * STEPS)]


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "cosine", "warmup_epochs": 0.0},
        {"kind": "cosine", "warmup_epochs": 2.0},
        {"kind": "cosine", "warmup_epochs": 0.5},
        {"kind": "flat_cosine", "warmup_epochs": 1.0, "flat_epochs": 4.0},
        {"kind": "flat_cosine", "warmup_epochs": 0.0, "flat_epochs": 9.0},
    ],
)
def test_the_rate_rises_to_what_was_asked_holds_and_falls_to_nothing(schedule):
    values = rates(**schedule)
    warmup = int(schedule["warmup_epochs"] * STEPS)
    flat = int(schedule.get("flat_epochs", 0) * STEPS)
    assert all(0 < value <= 2.0 for value in values)
    rise = [after - before for before, after in pairwise(values[: warmup + 1])]
    assert rise == pytest.approx([2.0 / (warmup + 1)] * warmup)
    assert values[warmup : warmup + flat + 1] == [2.0] * (flat + 1)
    fall = values[warmup + flat :]
    assert all(before > after for before, after in pairwise(fall))
    assert fall[len(fall) // 2] == pytest.approx(1.0, rel=0.05)
    assert fall[-1] < 2.0 * 0.005


def test_steps_multiply_the_rate_at_the_first_step_of_their_epochs():
    # The Perceiver's: divided by 10 at epochs 84, 102 and 114 of 120, here a tenth as long.
    values = rates(kind="steps", warmup_epochs=0.0, step_epochs=(7.0, 8.5, 9.5), factor=0.1)
    assert values == pytest.approx([2.0] * 350 + [0.2] * 75 + [0.02] * 50 + [0.002] * 25)
    warmed = rates(kind="steps", warmup_epochs=2.0, step_epochs=(7.0,), factor=0.5)
    assert warmed[:100] == rates(kind="cosine", warmup_epochs=2.0)[:100]
    assert warmed[100:] == [2.0] * 250 + [1.0] * 150


def test_beyond_the_last_step_the_rate_is_0():
    config = TrainingConfig(epochs=2, schedule=ScheduleConfig(warmup_epochs=0.0))
    assert learning_rate(2 * STEPS, STEPS, config) == 0
    assert learning_rate(9 * STEPS, STEPS, config) == 0
