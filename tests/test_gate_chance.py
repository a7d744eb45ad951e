"""Two models that differ by chance only do not replace each other: simulations of the gate."""

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test

from pipeline.config.registry import RegistryConfig
from pipeline.registry.gate import Comparison, differences
from pipeline.registry.outcomes import Outcomes
from pipeline.registry.paired_test import paired_p, smallest_p
from pipeline.registry.slices import Places, worse_slices
from pipeline.training.objectives import Objective
from pipeline.training.objectives.classification import Classification
from pipeline.training.objectives.regression import Regression

RULES = RegistryConfig()
SAMPLES = 200


def outcomes(values: np.ndarray, classes: np.ndarray | None = None) -> Outcomes:
    whole = np.ones(len(values), bool)
    rows = None if classes is None else np.arange(len(values))
    return Outcomes(whole, whole, values.astype(float), rows, classes)


def right(random: np.random.Generator, accuracy: float = 0.9) -> np.ndarray:
    return (random.random(SAMPLES) < accuracy).astype(float)


def errors(random: np.random.Generator) -> np.ndarray:
    """Absolute errors of a model, of which a few are very large."""
    return random.lognormal(sigma=2.0, size=SAMPLES)


def is_promoted(
    ours: np.ndarray,
    theirs: np.ndarray,
    objective: type[Objective] = Classification,
    units: np.ndarray | None = None,
) -> bool:
    found = Comparison.of(
        outcomes(ours), outcomes(theirs), np.ones(len(ours), bool), objective, units=units
    )
    return found.passes(RULES)


def assert_at_most(count: int, attempts: int, share: float) -> None:
    """The share is at most this, as far as this many attempts can tell."""
    assert binomtest(count, attempts, share, alternative="greater").pvalue > 1e-3, count / attempts


@pytest.mark.parametrize(("draw", "objective"), [(right, Classification), (errors, Regression)])
def test_of_equal_models_at_most_alpha_is_promoted(draw, objective):
    random = np.random.default_rng(0)
    pairs = 1000 if objective is Classification else 200
    promoted = sum(is_promoted(draw(random), draw(random), objective) for _ in range(pairs))
    assert promoted > 0
    assert_at_most(promoted, pairs, RULES.alpha)


def test_parts_of_a_recording_are_no_samples_of_their_own():
    """Ten parts of a recording, which a model has right or wrong together, are one coin toss."""
    random, apart, together = np.random.default_rng(0), 0, 0
    units = np.repeat(np.arange(20), SAMPLES // 20)
    for _ in range(300):
        ours, theirs = (random.random((2, 20)) < 0.7).astype(float)[:, units]
        apart += is_promoted(ours, theirs)
        together += is_promoted(ours, theirs, units=units)
    assert apart / 300 > 2 * RULES.alpha
    assert_at_most(together, 300, RULES.alpha)


def test_each_repeated_attempt_adds_at_most_alpha():
    """Equal models against one champion after another: one in twenty, and less after the first."""
    random, studies, attempts, promoted, any_promoted = np.random.default_rng(0), 100, 20, 0, 0
    for _ in range(studies):
        champion, before = right(random), promoted
        for _ in range(attempts):
            candidate = right(random)
            if is_promoted(candidate, champion):
                champion, promoted = candidate, promoted + 1
        any_promoted += promoted > before
    assert_at_most(promoted, studies * attempts, RULES.alpha)
    assert any_promoted / studies > 3 * RULES.alpha, "docs/registry.md warns of it"


def test_a_model_that_is_better_is_promoted():
    random = np.random.default_rng(0)
    assert is_promoted(right(random, 0.99), right(random, 0.85))
    assert is_promoted(0.5 * errors(random), errors(random), Regression)
    assert not is_promoted(errors(random), 0.5 * errors(random), Regression)


def test_large_errors_that_are_gone_count_more_than_small_ones_that_came():
    """The metric of a regression is a mean, and so is what is tested."""
    theirs = np.array([100.0] * 20 + [1.0] * 30)
    ours = np.array([1.0] * 20 + [1.1] * 30)
    found = Comparison.of(outcomes(ours), outcomes(theirs), np.ones(50, bool), Regression)
    assert found.wins < found.losses
    assert found.passes(RULES)


@pytest.mark.parametrize("units", [6, 12, 40])
def test_p_is_that_of_scipy_s_permutation_test(units):
    random = np.random.default_rng(units)
    for _ in range(3):
        values = random.normal(0.3, 1.0, units)
        wanted = permutation_test(
            (values,), lambda x, axis: x.mean(axis=axis), permutation_type="samples",
            vectorized=True, n_resamples=9_999, alternative="greater", rng=0,
        )  # fmt: skip
        assert paired_p(values, 0.05) == pytest.approx(wanted.pvalue, abs=0.02 if units > 13 else 0)


def test_differences_without_limit_count_as_the_largest():
    assert paired_p(np.array([np.inf] * 5), 0.05) == 1 / 32
    values = np.array([np.inf, 2.0, 2.0, 2.0, -2.0])
    assert paired_p(values, 0.05) == paired_p(np.array([2.0] * 4 + [-2.0]), 0.05)
    same = np.array([np.inf, np.inf, 1.0])
    assert differences(outcomes(same), outcomes(same), Regression).tolist() == [0.0] * 3
    assert smallest_p(1e-5) < 1e-5


# --- parts that got worse ---


def named(ours: np.ndarray, theirs: np.ndarray, classes: np.ndarray, **places: np.ndarray):
    mine, its = outcomes(ours, classes), outcomes(theirs, classes)
    everything = np.ones(len(ours), bool)
    folders = places.get("folders", np.full(len(ours), "", object))
    gains = differences(mine, its, Classification)
    names = tuple(f"class {number}" for number in range(int(classes.max()) + 1))
    return worse_slices(
        gains, mine, its, everything, np.arange(len(ours)),
        Places(folders, places.get("groups")), names, RULES.slice_alpha,
    )  # fmt: skip


def test_a_class_a_folder_and_a_group_that_got_worse_are_named_with_their_counts():
    classes = np.repeat(np.arange(4), 50)
    theirs, ours = np.zeros(SAMPLES), np.ones(SAMPLES)
    theirs[100:150], ours[100:112] = 1.0, 1.0
    ours[112:150] = 0.0
    (one,) = named(ours, theirs, classes)
    assert (one.kind, one.name, one.samples, one.wins, one.losses) == (
        "class",
        "class 2",
        50,
        0,
        38,
    )
    assert (one.value, one.champion_value) == (pytest.approx(0.24), 1.0)
    assert 0 < one.p_value < 1e-9
    place = np.array([f"site{number % 7}" for number in range(SAMPLES)], object)
    place[112:150] = "ward"
    found = named(ours, theirs, classes, folders=place)
    assert [(each.kind, each.name) for each in found] == [("class", "class 2"), ("source", "ward")]
    found = named(ours, theirs, classes, groups=place, folders=place)
    assert [(each.kind, each.name) for each in found] == [("class", "class 2"), ("group", "ward")]


def test_of_equal_models_a_part_is_named_in_at_most_alpha_of_the_comparisons():
    random, wrongly = np.random.default_rng(0), 0
    for _ in range(300):
        classes = random.integers(10, size=SAMPLES)
        folders = np.array([f"site{number}" for number in random.integers(5, size=SAMPLES)], object)
        ours, theirs = right(random, 0.6), right(random, 0.6)
        wrongly += bool(named(ours, theirs, classes, folders=folders))
    assert_at_most(wrongly, 300, RULES.slice_alpha)
