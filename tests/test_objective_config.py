"""The section `objective`: which one a configuration has, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
from modality_samples import make_config

from pipeline.config.load import with_values
from pipeline.config.objectives import OBJECTIVE_CONFIGS
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.training.objectives import OBJECTIVES


def config_with(**values: Any) -> Config:
    return with_values(make_config("table", Path("/nowhere")), values)


def test_every_objective_has_options_and_an_implementation_of_the_same_name() -> None:
    assert [each().kind for each in OBJECTIVE_CONFIGS] == list(OBJECTIVES)
    for options in OBJECTIVE_CONFIGS:
        assert OBJECTIVES[options().kind].target in options.targets


@pytest.mark.parametrize(
    ("target", "kind"), [("class", "classify"), ("regression", "regress"), ("none", None)]
)
def test_the_targets_imply_an_objective(target: str, kind: str | None) -> None:
    found = config_with(**{"data.target": {"kind": target}}).trained_for
    assert (found.kind if found else None) == kind


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"objective": {"kind": "regress"}}, "which needs data.target.kind 'regression'; it is 'c"),
        ({"objective": {"kind": "guess"}}, "objective: .*'guess'.*'classify'"),
        ({"objective": {"kind": "classify", "loss": "l1"}}, "objective.loss: unknown key"),
        (
            {"objective": {"kind": "classify", "class_weights": {"a": 0.0}}},
            "class_weights.a is 0; must be above 0",
        ),
        (
            {
                "data.target": {"kind": "regression"},
                "objective": {"kind": "regress", "huber_delta": 2.0},
            },
            "huber_delta is for loss 'huber'; objective.loss is 'mse'",
        ),
        (
            {
                "data.target": {"kind": "regression"},
                "objective": {"kind": "regress"},
                "training.label_smoothing": 0.1,
            },
            "label_smoothing is 0.1, which objective 'regress' does not use",
        ),
        (
            {
                "data.target": {"kind": "regression"},
                "objective": {"kind": "regress"},
                "training.balance_classes": 1.0,
            },
            "balance_classes is 1, which objective 'regress' does not use",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(values: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        config_with(**values)
    assert "\n" not in str(caught.value)
