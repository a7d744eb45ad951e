"""The Pareto front of a study's trials, and the scaling law over it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tuning.front import MIN_TRIALS, pareto_front, scaling_law


def trials_of(points: list[tuple[float, float]]) -> list[dict[str, float]]:
    return [{"forward_flops": cost, "accuracy": value} for cost, value in points]


def test_a_dearer_trial_is_on_the_front_only_if_it_is_better():
    trials = trials_of([(3, 0.9), (1, 0.5), (2, 0.5), (4, 0.89), (2.5, 0.7)])
    assert pareto_front(trials, "accuracy", 1, "forward_flops") == [1, 4, 0]


def test_a_metric_that_is_better_if_lower_turns_the_front():
    trials = trials_of([(1, 0.5), (2, 0.7), (3, 0.4)])
    assert pareto_front(trials, "accuracy", -1, "forward_flops") == [0, 2]


def test_of_equal_trials_the_first_is_taken_and_one_without_the_cost_is_left_out():
    trials = [*trials_of([(1, 0.5), (1, 0.5)]), {"accuracy": 1.0}]
    assert pareto_front(trials, "accuracy", 1, "forward_flops") == [0]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=30))
def test_the_front_holds_what_nothing_dominates(points):
    front = pareto_front(trials_of(points), "accuracy", 1, "forward_flops")
    chosen = [points[number] for number in front]
    for cost, value in chosen:
        assert not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
    for cost, value in points:
        assert any(c <= cost and v >= value for c, v in chosen)


def test_the_law_finds_the_exponent_of_a_power_law():
    random = np.random.default_rng(1)
    costs = np.geomspace(1e6, 1e9, 12)
    trials = [
        {"forward_flops": cost, "val_loss": 50 * cost**-0.2 * np.exp(random.normal(0, 0.01))}
        for cost in costs
    ]
    law = scaling_law(trials, "forward_flops")
    assert law is not None
    assert law.low < 0.2 < law.high
    assert law.high - law.low < 0.03
    assert law.exponent == pytest.approx(0.2, abs=0.01)
    assert law.error < 0.02
    assert law.at(1e7) == pytest.approx(50 * 1e7**-0.2, rel=0.03)


def test_trials_off_the_front_do_not_bend_the_law():
    trials = [{"parameters": 10.0**n, "val_loss": 2.0 * 10 ** (-0.3 * n)} for n in range(3, 8)]
    poor = [{"parameters": 10.0**n, "val_loss": 9.0} for n in range(4, 8)]
    law = scaling_law([*trials, *poor], "parameters")
    assert law is not None
    assert law.exponent == pytest.approx(0.3)
    assert law.trials == 5


def test_too_few_trials_give_no_law():
    trials = [{"parameters": 10.0**n, "val_loss": 10.0**-n} for n in range(1, MIN_TRIALS)]
    assert scaling_law(trials, "parameters") is None
