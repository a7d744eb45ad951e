"""The demo: every stage once on all its digits, with a tiny model, and then nothing again."""

import json
from pathlib import Path

import pytest
from conftest import TINY_MODEL
from mlflow.tracking import MlflowClient

from pipeline.config.load import load_config
from pipeline.demo.demo import demo, report
from pipeline.runs.console import Console

STUDY = (
    "study={search: grid, num_workers: 1, grace_epochs: 1, epochs: 1, space: "
    "{training.learning_rate: {choice: [3e-3]}}}"
)


@pytest.mark.usefixtures("ray_cluster")
def test_the_demo_does_each_stage_once(tmp_path: Path) -> None:
    raw = tmp_path / "digits" / "raw" / "train"
    given = (f"output={tmp_path}", f"data.train={raw}", *TINY_MODEL, "training.epochs=1", STUDY)
    config = load_config("digits", [*given, "cluster.num_workers=0"])
    with (tmp_path / "told.txt").open("w+") as file:
        console = Console(file, file)
        first = demo(config, console)
        report(first, console)
        again = demo(config, console)
        file.seek(0)
        told = file.read()
    names = ["images", "preprocess", "train", "tune", "promote", "predict"]
    assert [stage["name"] for stage in first["stages"]] == names
    assert [stage["skipped"] for stage in first["stages"]] == [False] * 6
    assert [stage["skipped"] for stage in again["stages"]] == [True] * 6
    assert first["test_files"] == 1000 and 0.05 < first["test_accuracy"] <= 1
    assert {**again, "stages": None} == {**json.loads(json.dumps(first)), "stages": None}
    assert f"test accuracy {first['test_accuracy']:.4f} on 1000 PNG files" in told
    client = MlflowClient(config.tracking_uri)
    version = client.get_model_version_by_alias("perceiver-digits", "champion")
    assert version.run_id == first["trials"][0]["run_id"]
