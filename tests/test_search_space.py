"""The space of a study: kinds of values, conditions between fields, and how a grid covers them."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.conditions import existing, in_order
from pipeline.config.load import load_config
from pipeline.config.space import SpaceConfig
from pipeline.config.study import StudyConfig
from pipeline.config.trial_configs import draw_settings, study_base, trial_config
from pipeline.errors import UserError

LATENTS, RATE = "model.encoder.num_latents", "training.learning_rate"
OPTIMIZER, MOMENTUM = "training.optimizer", "training.momentum"


def space(**fields: dict[str, Any]) -> dict[str, SpaceConfig]:
    return {name: SpaceConfig.model_validate(values) for name, values in fields.items()}


def study(search: str, fields: dict[str, Any], **others: Any) -> StudyConfig:
    return StudyConfig.model_validate({"search": search, "space": fields, **others})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"choice": ("a", 2, True)}, ["a", 2, True]),
        ({"integer": (3, 6)}, [3, 4, 5, 6]),
        ({"integer": (8, 30, 8)}, [8, 16, 24]),
        ({"quniform": (16, 64, 16)}, [16, 32, 48, 64]),
        ({"quniform": (0.1, 0.4, 0.1)}, [0.1, 0.2, 0.3, 0.4]),
        ({"quniform": (0, 1, 0.5)}, [0.0, 0.5, 1.0]),
    ],
)
def test_kinds_with_levels_have_exactly_these(values: dict[str, Any], expected: list[Any]) -> None:
    found = SpaceConfig.model_validate(values)
    assert found.levels == len(expected)
    levels = [found.level(index) for index in range(len(expected))]
    assert [(type(each), each) for each in levels] == [(type(each), each) for each in expected]
    drawn = [found.at(share / 100) for share in range(100)]
    assert list(dict.fromkeys(drawn)) == expected
    assert all(found.holds(each) for each in expected)
    assert not found.holds("other") and not found.holds(17.5)


@given(share=st.floats(0, 1, exclude_max=True), low=st.integers(1, 50), more=st.integers(1, 10**6))
def test_log_integers_are_whole_and_within_their_bounds(share: float, low: int, more: int) -> None:
    found = SpaceConfig.model_validate({"log_integer": (low, low + more)})
    value = found.at(share)
    assert type(value) is int and low <= value <= low + more
    assert found.at(0) == low


def test_small_log_integers_are_drawn_as_often_as_their_logarithm_says() -> None:
    found = SpaceConfig.model_validate({"log_integer": (1, 255)})
    drawn = [found.at(number / 8000) for number in range(8000)]
    # 1 takes as much room as 2 and 3 together, and these as much as 4 to 7.
    for low, high in itertools.pairwise([1, 2, 4, 8, 16, 32, 64, 128, 256]):
        assert sum(low <= value < high for value in drawn) == pytest.approx(1000, abs=2)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ("{integer: [8, 8]}", "is [8, 8]; low < high is needed"),
        ("{integer: [8, 64, 0]}", "is [8, 64, 0]; 0 < step <= high - low is needed"),
        ("{integer: [8, 64, 8, 8]}", "give low, high and"),
        ("{integer: [8, 64.0]}", "is 64.0; "),
        ("{integer: [8]}", "give low, high and"),
        ("{quniform: [8, 64]}", "is missing"),
        ("{quniform: [8, 64, -8]}", "0 < step"),
        ("{log_integer: [0, 64]}", "a logarithm needs 0 < low"),
        (
            "{integer: [8, 64], choice: [8]}",
            "give exactly one of 'choice', 'uniform', 'loguniform'",
        ),
        ("{when: {training.optimizer: [adamw]}}", "give exactly one of 'choice'"),
        # An integer field never gets a number with a point.
        ("{uniform: [8, 64]}", "is 8.0; "),
        ("{quniform: [8.0, 64.0, 8.0]}", "is 8.0; "),
        ("{choice: [8.0]}", "is 8.0; "),
    ],
)
def test_values_that_cannot_be_are_refused_with_a_line(values: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config("digits", ["study.search=random", f"study.space.{LATENTS}={values}"])
    (line,) = str(refused.value).splitlines()
    assert LATENTS in line and told in line


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (f"{{{RATE}: {{choice: [1e-3], when: {{{LATENTS}: [8]}}}}}}", "no searched field"),
        (
            f"{{{RATE}: {{uniform: [1e-4, 1e-3]}}, {LATENTS}: {{choice: [8], "
            f"when: {{{RATE}: [1e-3]}}}}}}",
            "is uniform, which has no single values",
        ),
        (
            f"{{{RATE}: {{choice: [1e-3], when: {{{LATENTS}: [9]}}}}, "
            f"{LATENTS}: {{choice: [8, 16]}}}}",
            "is never 9",
        ),
        (
            f"{{{RATE}: {{choice: [1e-3], when: {{{LATENTS}: [8]}}}}, "
            f"{LATENTS}: {{choice: [8], when: {{{RATE}: [1e-3]}}}}}}",
            "are a circle",
        ),
        (
            f"{{{RATE}: {{choice: [1e-3], when: {{{LATENTS}: []}}}}, {LATENTS}: {{choice: [8]}}}}",
            f"when.{LATENTS} is empty",
        ),
    ],
)
def test_conditions_that_cannot_hold_are_refused_with_a_line(fields: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config("digits", [f"study={{search: random, space: {fields}}}"])
    (line,) = str(refused.value).splitlines()
    assert told in line


def test_a_field_whose_condition_holds_is_checked_beside_it() -> None:
    # Only muon has a momentum, and muon needs stage 0; alone, either value would be refused.
    fields = (
        f"{{{OPTIMIZER}: {{choice: [adamw, muon]}}, "
        f"{MOMENTUM}: {{choice: [0.9, 0.95], when: {{{OPTIMIZER}: [muon]}}}}}}"
    )
    config = load_config("digits", [f"study={{search: grid, space: {fields}}}",
                                    "training.zero_stage=0"])  # fmt: skip
    assert config.study is not None
    base = study_base(config, config.study)
    found = [trial_config(base, each).training for each in draw_settings(config.study, 0)]
    assert [(each.optimizer, each.momentum) for each in found] == [
        ("adamw", None), ("muon", 0.9), ("muon", 0.95),
    ]  # fmt: skip
    never = fields.replace("[0.9, 0.95]", "[2.0]")
    with pytest.raises(UserError, match=r"training\.momentum.*is 2\.0"):
        load_config("digits", [f"study={{search: grid, space: {never}}}",
                               "training.zero_stage=0"])  # fmt: skip


NESTED = {
    "d": {"choice": ("x", "y")},
    "a": {"integer": (1, 3), "when": {"d": ("y",)}},
    "b": {"choice": (True, False), "when": {"a": (1, 3)}},
    "c": {"quniform": (0.5, 1.5, 0.5)},
}


def test_a_grid_runs_each_combination_of_fields_that_exist_once() -> None:
    drawn = draw_settings(study("grid", NESTED), 0)
    # c alone for x; for y: c times (1 with b, 2 without b, 3 with b).
    assert len(drawn) == study("grid", NESTED).trials == 3 * (1 + 2 + 1 + 2)
    assert len({tuple(sorted(each.items())) for each in drawn}) == len(drawn)
    for each in drawn:
        assert ("a" in each) == (each["d"] == "y")
        assert ("b" in each) == (each.get("a") in (1, 3))


def test_a_grid_runs_equal_choices_once_and_refuses_continuous_fields() -> None:
    assert len(draw_settings(study("grid", {"a": {"choice": (1, 1, 2)}}), 0)) == 2
    assert study("grid", {"a": {"choice": (1, 1, 2)}}).trials == 2
    for kind, bounds in (("uniform", (0.1, 1.0)), ("log_integer", (1, 9))):
        with pytest.raises(ValueError, match=rf"grid' needs choice, integer .* this is {kind}"):
            study("grid", {"a": {kind: bounds}})
    with pytest.raises(ValueError, match="more than 100000"):
        study("grid", {name: {"integer": (1, 100)} for name in "abc"})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), few=st.integers(1, 9), more=st.integers(0, 9),
       search=st.sampled_from(["random", "sobol"]))  # fmt: skip
def test_fields_exist_where_their_conditions_hold_and_more_trials_go_on(
    seed: int, few: int, more: int, search: str
) -> None:
    drawn = draw_settings(study(search, NESTED, num_trials=few + more), seed)
    assert len(drawn) == few + more
    assert drawn[:few] == draw_settings(study(search, NESTED, num_trials=few), seed)
    for each in drawn:
        assert existing(study(search, NESTED).space, each) == each
        assert ("b" in each) == (each.get("a") in (1, 3))


def test_a_sobol_sequence_fills_each_part_of_the_space() -> None:
    fields = {name: {"uniform": (0.0, 1.0)} for name in "ab"}
    drawn = draw_settings(study("sobol", fields, num_trials=16), 3)
    # 16 points are one in each of 4 x 4 boxes, which random points are not.
    assert len({(int(4 * each["a"]), int(4 * each["b"])) for each in drawn}) == 16
    assert drawn != draw_settings(study("sobol", fields, num_trials=16), 4)


def test_fields_come_after_those_of_their_conditions_and_else_by_name() -> None:
    assert in_order(space(b={"choice": (1,)}, c={"choice": (1,)}, a={"choice": (1,)})) == [
        "a", "b", "c",
    ]  # fmt: skip
    assert in_order(study("grid", NESTED).space) == ["c", "d", "a", "b"]


def test_the_seed_of_the_training_can_be_searched() -> None:
    config = load_config("digits", ["study={search: grid, space: {seed: {choice: [3, 4]}}}"])
    assert config.study is not None
    base = study_base(config, config.study)
    assert [trial_config(base, each).seed for each in draw_settings(config.study, 0)] == [3, 4]
