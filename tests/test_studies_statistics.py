"""The statistics of studies, against scipy, known values and simulation."""

import numpy as np
import pytest
from scipy import stats

from pipeline.studies.statistics import corrected, difference_of, expected, holm, mean_of

BASE, BETTER = [0.90, 0.91, 0.89, 0.92, 0.90], [0.93, 0.95, 0.91, 0.94, 0.94]


def test_a_mean_has_students_interval() -> None:
    found = mean_of(BASE)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(BASE), scale=stats.sem(BASE))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(BASE), low, high))
    assert found.count == 5


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two values"):
        mean_of([0.9])


def test_intervals_of_five_seeds_hold_the_mean_as_often_as_they_say() -> None:
    random = np.random.default_rng(7)
    samples = random.normal(0.9, 0.01, size=(2000, 5))
    inside = sum(m.low <= 0.9 <= m.high for m in map(mean_of, samples.tolist()))
    assert 0.935 <= inside / 2000 <= 0.965


@pytest.mark.parametrize("count", [3, 5])
def test_means_of_other_seeds_lie_where_they_are_expected_as_often_as_said(count: int) -> None:
    random = np.random.default_rng(7)
    stated = random.normal(0.9, 0.01, size=(2000, 5))
    others = random.normal(0.9, 0.01, size=(2000, count)).mean(axis=1)
    means = [mean_of(values) for values in stated.tolist()]
    ranges = [expected(mean, count) for mean in means]
    inside = sum(low <= o <= high for (low, high), o in zip(ranges, others, strict=True))
    assert 0.935 <= inside / 2000 <= 0.965
    if count == 5:  # the interval of the mean itself is for something else
        within = sum(m.low <= o <= m.high for m, o in zip(means, others, strict=True))
        assert 0.86 <= within / 2000 <= 0.90


def test_a_difference_is_paired_by_seeds() -> None:
    found = difference_of("better", "base", BETTER, BASE)
    assert found.mean == pytest.approx(0.03)
    assert found.p == pytest.approx(stats.ttest_rel(BETTER, BASE).pvalue)
    interval = stats.ttest_rel(BETTER, BASE).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.is_clear


def test_arms_with_the_same_values_do_not_differ() -> None:
    found = difference_of("same", "base", BASE, BASE)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert not found.is_clear


def test_holms_correction_gives_known_values() -> None:
    # 4 × 0.005, 3 × 0.01, 2 × 0.03, and 0.04 raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_many_arms_that_do_not_differ_rarely_seem_to() -> None:
    """Without the correction, ten tests find something in about 40 % of studies."""
    random = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        base, *others = random.normal(size=(11, 5)).tolist()
        found = corrected([difference_of("arm", "base", each, base) for each in others])
        wrong += any(each.is_clear for each in found)
    assert wrong / 200 < 0.08
