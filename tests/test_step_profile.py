"""`perceiver train --profile`: a trace and a table of operators, and the same weights."""

import gzip
import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from small_digits import digits_config
from trainings import difference, final_weights

from pipeline.errors import UserError
from pipeline.evaluation.best import report_best
from pipeline.runs.console import Console
from pipeline.training.train import train

SHORT = {"training.epochs": 2, "tracking.examples": 0}
"""Two epochs of 7 steps."""


def test_a_profile_of_some_steps_is_in_the_run_and_changes_nothing_else(tmp_path: Path) -> None:
    plain = digits_config(tmp_path / "plain", "digits", [0, 1, 7], SHORT)
    profiled = digits_config(tmp_path / "profiled", "digits", [0, 1, 7], SHORT)
    with (tmp_path / "console.txt").open("w+") as file:
        console = Console(file, file)
        train(plain, console)
        result = train(profiled, console, profile=3, report_best=report_best)
        with pytest.raises(UserError, match=r"--profile 3: needs 8 steps.*the training has 0 left"):
            train(profiled, console, profile=3)
        file.seek(0)
        told = file.read()
    assert difference(final_weights(profiled), final_weights(plain)) == 0
    place = profiled.folder / "train" / "profile" / "trace.json.gz"
    assert f"profile of 3 steps: {place}" in told
    events = json.loads(gzip.decompress(place.read_bytes()))["traceEvents"]
    # Steps count from 0; three wait, and two warm up.
    assert {e["name"] for e in events if e["name"].startswith("ProfilerStep#")} == {
        "ProfilerStep#5", "ProfilerStep#6", "ProfilerStep#7",
    }  # fmt: skip
    assert "aten::addmm" in (place.parent / "operators.txt").read_text("utf-8")
    store = MlflowClient(profiled.tracking_uri)
    found = {each.path for each in store.list_artifacts(result["run_id"], "profile")}
    assert found == {"profile/trace.json.gz", "profile/operators.txt"}
    everything = {each.path for each in store.list_artifacts(result["run_id"])}
    assert "report" in everything, "the confusions of the best evaluation"
    report = json.loads((profiled.folder / "train" / "report" / "report.json").read_text("utf-8"))
    assert report["examples"] == [], "tracking.examples is 0"


def test_a_profile_that_does_not_fit_into_the_training_is_refused(tmp_path: Path) -> None:
    config = digits_config(tmp_path, "digits", [0, 1, 7], SHORT)
    refused = pytest.raises(UserError, match=r"--profile 10: needs 15 steps.* has 14 left")
    with (tmp_path / "console.txt").open("w") as file, refused:
        train(config, Console(file, file), profile=10)
    assert not (config.folder / "train").exists(), "nothing was begun"
