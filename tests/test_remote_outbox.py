"""What MLflow has not received of a run in object storage is uploaded, and delivered from there."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from test_outbox import _no_tries_by_mlflow, history, store, uri

from pipeline.config.folders import folder_at
from pipeline.runs.outbox import DRIVER, Outbox, RunRef, deliver_folder
from pipeline.runs.run_logger import RunLogger
from pipeline.runs.storage import exists, names, read_bytes

__all__ = ["_no_tries_by_mlflow", "store", "uri"]


@pytest.fixture
def run(store: MlflowClient, uri: str, s3_bucket: str, tmp_path: Path) -> RunRef:
    artifacts = (tmp_path / "artifacts").as_uri()
    experiment = store.create_experiment(tmp_path.name, artifact_location=artifacts)
    run_id = store.create_run(experiment).info.run_id
    return RunRef(uri, run_id, f"{s3_bucket}/{tmp_path.name}/mlflow/train")


@pytest.fixture
def gone(run: RunRef) -> RunRef:
    """The same run where no server answers."""
    return RunRef("http://127.0.0.1:9", run.run_id, run.outbox)


def machine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on as if on another machine, which shares no disk."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))


def log(run: RunRef, steps: range) -> None:
    logger = RunLogger(run, system_metrics_seconds=None, node=0, writes_metrics=True)
    for step in steps:
        logger.log({"loss": step / 2}, step)
    logger.save()


def test_another_machine_delivers_what_was_there_at_the_last_checkpoint(
    run: RunRef,
    gone: RunRef,
    store: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine("a", tmp_path, monkeypatch)
    log(gone, range(5))
    box = Outbox(gone, DRIVER)
    (tmp_path / "table.txt").write_text("rows")
    box.artifact(tmp_path / "table.txt")
    box.end("FAILED")
    told = deliver_folder(gone.tracking_uri, run.outbox)
    assert told is not None
    assert told.startswith("7 entries for MLflow") and run.outbox in told
    machine("b", tmp_path, monkeypatch)
    assert deliver_folder(run.tracking_uri, run.outbox) is None
    assert history(store, run, "loss") == [(step, step / 2) for step in range(5)]
    assert store.get_run(run.run_id).info.status == "FAILED"
    assert [each.path for each in store.list_artifacts(run.run_id)] == ["table.txt"]
    assert not exists(folder_at(run.outbox))


def test_a_run_that_goes_on_elsewhere_logs_each_step_once_and_the_first_machine_follows_it(
    run: RunRef,
    gone: RunRef,
    store: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine("a", tmp_path, monkeypatch)
    log(gone, range(5))
    machine("b", tmp_path, monkeypatch)
    log(gone, range(3, 8))  # it resumes at an earlier step
    machine("a", tmp_path, monkeypatch)
    log(gone, range(6, 10))
    assert deliver_folder(run.tracking_uri, run.outbox) is None
    assert history(store, run, "loss") == [(step, step / 2) for step in range(10)]


def test_what_was_delivered_is_not_uploaded(run: RunRef, store: MlflowClient) -> None:
    logger = RunLogger(run, system_metrics_seconds=None, node=0, writes_metrics=True)
    logger.log({"loss": 1.0}, 3)
    logger.close()
    (name,) = names(folder_at(run.outbox))
    data = read_bytes(folder_at(run.outbox) / name, 1 << 20)
    assert data.count(b"\n") == 1 and b'"last_steps": {"loss": 3}' in data
    assert history(store, run, "loss") == [(3, 1.0)]
