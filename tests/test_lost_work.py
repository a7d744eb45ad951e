"""The time that failures cost: the formula beside a training that is hit at random moments."""

import io
import math
from typing import Any

import numpy as np
import pytest

from pipeline.config.load import load_config
from pipeline.errors import UserError
from pipeline.plan.lost_work import Failures
from pipeline.plan.plan import plan
from pipeline.plan.report import report
from pipeline.plan.request import Request, check_request
from pipeline.runs.console import Console


def simulated_seconds(failures: Failures, work: float, interval: float, seed: int) -> float:
    """Run a training segment by segment, with failures at random moments."""
    random = np.random.default_rng(seed)
    clock, committed, segments = 0.0, 0, round(work / interval)
    while True:
        life = random.exponential(failures.between)
        first = failures.restart + failures.commit
        done = max(0, math.floor((life - first) / (interval + failures.blocked)))
        if committed + done >= segments:
            left = (segments - committed) * (interval + failures.blocked)
            return clock + first + left
        committed += done
        clock += life


@pytest.mark.parametrize(
    ("failures", "interval"),
    [
        (Failures(between=3600, restart=60, blocked=0.5, commit=5), 120),
        (Failures(between=600, restart=90, blocked=2, commit=30), 60),
        (Failures(between=600, restart=90, blocked=2, commit=30), 600),
        (Failures(between=100, restart=100, blocked=10, commit=100), 50),
    ],
)
def test_the_expected_time_is_that_of_a_simulation(failures, interval):
    work = interval * 400
    times = [simulated_seconds(failures, work, interval, seed) for seed in range(200)]
    error = np.std(times) / math.sqrt(len(times))
    assert failures.expected_seconds(work, interval) == pytest.approx(
        np.mean(times), abs=4 * error, rel=0.02
    )
    assert failures.lost_share(interval) == pytest.approx(1 - work / np.mean(times), abs=0.02)


@pytest.mark.parametrize("blocked", [0.01, 1, 100])
def test_no_interval_is_better_than_the_best(blocked):
    failures = Failures(between=5000, restart=60, blocked=blocked, commit=10)
    best = failures.best_interval()
    least = failures.expected_seconds(1, best)
    for factor in (0.5, 0.9, 1.1, 2):
        assert failures.expected_seconds(1, best * factor) > least
    assert best == pytest.approx(math.sqrt(2 * blocked * 5000), rel=0.15)


def test_a_training_that_never_commits_a_checkpoint_takes_for_ever():
    failures = Failures(between=10, restart=300, blocked=1, commit=10)
    assert failures.expected_seconds(3600, 60) == math.inf
    assert failures.lost_share(60) == 1


def planned(*overrides: str, **request: float) -> Any:
    config = load_config(
        "perceiver-io-imagenet",
        ["cluster.num_workers=1000", "training.batch_size=8000", *overrides],
    )
    asked = Request(gpu="h100", samples=1_268_000, **request)
    check_request(asked)
    return plan(config, Console(io.StringIO(), io.StringIO()), asked)


def test_a_plan_names_what_failures_cost_and_the_interval_that_loses_least():
    result = planned(failure_hours=1000)
    failures = result["failures"]
    assert failures["hours_between"] == 1
    assert failures["checkpoint_steps"] == result["run"]["steps_per_epoch"]
    assert failures["seconds"] > result["run"]["seconds"]
    assert failures["expected_failures"] == pytest.approx(failures["seconds"] / 3600)
    interval = f"training.checkpoint_steps={failures['best_checkpoint_steps']}"
    best = planned(interval, failure_hours=1000)["failures"]
    assert best["lost_share"] == pytest.approx(failures["best_lost_share"])
    assert best["lost_share"] < failures["lost_share"]
    # There is a failure in each hour, so its restart is lost in each hour.
    slower = planned(failure_hours=1000, restart_seconds=600)
    assert slower["failures"]["lost_share"] - failures["lost_share"] == pytest.approx(
        540 / 3600, rel=0.2
    )
    text = io.StringIO()
    report(result, Console(text, text))
    assert f"every {failures['best_checkpoint_steps']:,} steps loses least" in text.getvalue()


def test_a_restart_is_not_asked_for_without_failures():
    with pytest.raises(UserError, match="--restart-seconds: has no effect"):
        planned(restart_seconds=10)
    with pytest.raises(UserError, match="--failure-hours -1: must be above 0"):
        planned(failure_hours=-1)
    assert planned()["failures"] is None
