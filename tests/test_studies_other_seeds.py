"""Means of other seeds beside those that a page states."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_studies import ABOUT, OURS, PEER, two_arms

from pipeline.errors import UserError
from pipeline.studies.metrics import ACCURACY, Metric
from pipeline.studies.other_seeds import against_table, agreement, compared, read_summary
from pipeline.studies.page import write_study
from pipeline.studies.request import Request
from pipeline.studies.study import Study
from pipeline.studies.summary import found_of

COST = Metric("step_ms", "step", "ms", is_ratio=True, along="tokens")
ASKED = Request("permuted", scale="small")


def study() -> Study:
    return replace(two_arms(), metrics=(ACCURACY, COST), columns=())


def rows(accuracies: list[float], milliseconds: list[float]) -> dict[str, list[dict[str, Any]]]:
    own = [
        {"accuracy": value, "step_ms": {100: ms}}
        for value, ms in zip(accuracies, milliseconds, strict=True)
    ]
    return {OURS: own, PEER: [{"accuracy": 0.5 + 0.01 * n} for n in range(len(own))]}


@pytest.fixture
def summary(tmp_path: Path) -> Path:
    results = rows([0.90, 0.91, 0.92], [10.0, 20.0, 40.0])
    write_study(tmp_path, study(), found_of(study(), results), results, ABOUT)
    return tmp_path / "permuted.json"


def test_a_mean_is_within_if_it_lies_where_other_seeds_are_expected(summary: Path) -> None:
    stated = read_summary(summary, ASKED, range(3, 6))
    # The interval of the page is 0.91 ± 0.0248, and √2 times that is 0.0351.
    ours = found_of(study(), rows([0.94, 0.94, 0.94], [160.0, 160.0, 160.0]))
    found = {(each.metric, each.label, each.at): each for each in compared(study(), ours, stated)}
    near = found["accuracy", OURS, None]
    assert (near.stated, near.mean) == (pytest.approx(0.91), pytest.approx(0.94))
    assert near.high == pytest.approx(0.91 + 0.024841 * 2**0.5, abs=1e-5) and near.is_within
    # A factor of 2 between seeds: the mean is 20, and 20 times 11.4 the upper end.
    cost = found["step_ms", OURS, 100]
    assert cost.high == pytest.approx(20 * 2 ** (2**0.5 * 4.302653 / 3**0.5), rel=1e-4)
    assert cost.is_within
    far = found_of(study(), rows([0.95, 0.95, 0.95], [1.7, 1.7, 1.7]))
    beyond = {each.metric: each for each in compared(study(), far, stated) if each.label == OURS}
    assert not beyond["accuracy"].is_within and not beyond["step_ms"].is_within
    assert agreement(list(found.values())).startswith("3 of 3 means lie where")
    assert agreement(compared(study(), far, stated)).startswith("1 of 3 means lie where")
    table = against_table(study(), compared(study(), far, stated))
    assert table[0] == (OURS, "accuracy, %", "91.00", "87.49 to 94.51", "95.00", "outside")
    assert table[2][0] == f"{OURS}, tokens 100"


def test_the_same_seeds_are_refused(summary: Path) -> None:
    with pytest.raises(UserError, match="has the seeds 0 to 2; give --first-seed 3"):
        read_summary(summary, ASKED, range(2, 5))


@pytest.mark.parametrize(
    "asked",
    [
        replace(ASKED, name="ablations"),
        replace(ASKED, scale="full"),
        replace(ASKED, overrides=("training.epochs=3",)),
    ],
)
def test_another_study_is_refused(summary: Path, asked: Request) -> None:
    with pytest.raises(UserError, match="'perceiver study permuted --scale small', which asks"):
        read_summary(summary, asked, range(3, 6))


def without_means(tree: dict[str, Any]) -> Any:
    return {key: value for key, value in tree.items() if key != "points"}


def with_mean(value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(tree: dict[str, Any]) -> Any:
        return {**tree, "points": [{**tree["points"][0], "mean": value}]}

    return change


@pytest.mark.parametrize(
    "change",
    [without_means, with_mean("high"), with_mean(float("nan")), lambda tree: [tree],
     lambda tree: {**tree, "seeds": "3"}, lambda tree: {**tree, "seeds": 0}],
)  # fmt: skip
def test_what_is_no_summary_is_refused(summary: Path, change: Callable[[Any], Any]) -> None:
    summary.write_text(json.dumps(change(json.loads(summary.read_text()))))
    with pytest.raises(UserError, match="is no summary of a study's page with its means"):
        read_summary(summary, ASKED, range(3, 6))


def test_a_missing_summary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_summary(tmp_path / "none.json", ASKED, range(3, 6))


def test_the_command_of_a_page_names_its_seeds() -> None:
    assert replace(ASKED, seeds=3, first_seed=5).command() == (
        "perceiver study permuted --scale small --seeds 3 --first-seed 5"
    )
