"""A study: ranked on validation and only there, one parent run, each trial a nested child."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from cluster import ClusterError
from pipeline.checkpoints import read_checkpoint
from pipeline.config import Config
from pipeline.console import Console
from pipeline.errors import UserError
from pipeline.tune import tune

pytestmark = pytest.mark.usefixtures("ray_cluster")

STUDY = (
    "study={search: grid, num_workers: 1, grace_epochs: 1, epochs: 3, space: "
    "{training.learning_rate: {choice: [3e-3, 1e-6]}}}"
)


def test_a_study_runs_ranks_logs_and_is_skipped_when_done(
    make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path, console: Console
) -> None:
    config = make_config(tmp_path, f"shards={digit_shards}", STUDY)
    result = tune(config, console)
    assert [trial["params"]["training.learning_rate"] for trial in result["trials"]] == [3e-3, 1e-6]
    best, worst = result["trials"]
    assert best["accuracy"] > worst["accuracy"]
    assert result["best"] == best
    for trial in result["trials"]:
        # The accuracy that ranks is the validation accuracy of the checkpoint that is kept.
        state = read_checkpoint(Path(trial["checkpoint"])).state
        assert trial["accuracy"] == state.metrics["val_accuracy"] == state.score
        assert trial["forward_flops"] > 1e6
    with Image.open(result["plot"]) as plot:
        assert plot.format == "PNG"

    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name("digits")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs.pop(result["run_id"])
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {result["run_id"]}
    assert set(runs) == {trial["run_id"] for trial in result["trials"]}
    assert parent.data.tags["perceiver.best_trial"] == best["run_id"]
    artifacts = {artifact.path for artifact in client.list_artifacts(result["run_id"])}
    assert {"accuracy_vs_flops.png", "study.json"} <= artifacts
    assert client.get_metric_history(best["run_id"], "val_accuracy")

    again = tune(config, console)
    assert again["skipped"]
    assert again["trials"] == result["trials"]


def test_without_a_validation_part_a_study_is_refused(
    make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path, console: Console
) -> None:
    config = make_config(tmp_path, f"shards={digit_shards}", STUDY, "data.validation=null")
    with pytest.raises(UserError, match=r"data\.validation.*ranks its trials"):
        tune(config, console)


def test_trials_that_the_cluster_can_never_hold_are_refused(
    make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path, console: Console
) -> None:
    shards = f"shards={digit_shards}"
    too_wide = make_config(tmp_path, shards, STUDY.replace("num_workers: 1", "num_workers: 64"),
                           "training.batch_size=64")  # fmt: skip
    with pytest.raises(ClusterError, match=r"a trial needs 64 CPUs.*study\.num_workers"):
        tune(too_wide, console)
    too_many = make_config(
        tmp_path,
        shards,
        STUDY.replace("num_workers: 1", "num_workers: 1, max_concurrent_trials: 99"),
    )
    with pytest.raises(ClusterError, match="max_concurrent_trials=99"):
        tune(too_many, console)


def test_a_trial_that_fails_is_told_and_the_others_count(
    make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path, console: Console
) -> None:
    # 512 is more than the shard set has; only the trial finds that out.
    study = STUDY.replace(
        "training.learning_rate: {choice: [3e-3, 1e-6]}", "training.batch_size: {choice: [32, 512]}"
    )
    config = make_config(tmp_path, f"shards={digit_shards}", study)
    result = tune(config, console)
    assert [trial["params"]["training.batch_size"] for trial in result["trials"]] == [32]
    (failure,) = result["failed"]
    assert "batch_size is 512" in failure
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name("digits")
    statuses = [run.info.status for run in client.search_runs([experiment.experiment_id])]
    assert sorted(statuses) == ["FAILED", "FINISHED", "FINISHED"]
