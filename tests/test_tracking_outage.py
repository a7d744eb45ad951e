"""MLflow's server goes away in the middle of a training: telemetry waits, the training does not."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from mlflow_server import Server
from small_digits import digits_config

from pipeline.errors import UserError
from pipeline.runs import outbox
from pipeline.runs.console import Console
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.loop import TrainLoop
from pipeline.training.result import LEFT
from pipeline.training.train import train


@pytest.fixture
def server(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    shutil.copy(empty_database, tmp_path / "server.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(outbox, "_refused_at", {})
    server = Server(tmp_path)
    server.start()
    server.wait()
    yield server
    server.stop()


def test_a_training_outlives_its_tracking_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "training.epochs": 4, "training.log_steps": 1, "tracking.uri": server.uri,
        "tracking.system_metrics": True, "tracking.system_metrics_seconds": 0.05,
    }  # fmt: skip
    config = digits_config(tmp_path / "out", "digits", (0, 1, 7), values)
    run_epoch = TrainLoop.run_epoch

    def losing_the_server(loop: TrainLoop, state: TrainState) -> TrainState:
        if state.epoch == 1:
            server.stop()
        return run_epoch(loop, state)

    monkeypatch.setattr(TrainLoop, "run_epoch", losing_the_server)
    with (tmp_path / "told.txt").open("w+") as file:
        result = train(config, Console(file, file))
        file.seek(0)
        told = file.read()
    assert result["epochs"] == 4
    assert "does not take what is logged" in told and "the training goes on" in told
    assert "are not delivered" in result[LEFT] and str(config.folder / "mlflow") in result[LEFT]

    # Gone at the start: a line, and nothing is begun or removed.
    with pytest.raises(UserError, match="MLflow does not answer there"):
        train(config, Console(file_of(tmp_path), file_of(tmp_path)), fresh=True)
    assert Path(result["checkpoint"]).is_dir()

    # The next command on the same run delivers, in order, each value once.
    monkeypatch.setattr(outbox, "_refused_at", {})
    server.start()
    server.wait()
    again = train(config, Console(file_of(tmp_path), file_of(tmp_path)))
    assert (again["skipped"], again[LEFT]) == (True, None)
    client = MlflowClient(server.uri)
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["perceiver.checkpoint"] == result["checkpoint"]
    assert run.data.metrics["best_score"] == result["score"]
    for name, steps in (("loss", range(1, 29)), ("val_loss", (7, 14, 21, 28))):
        history = client.get_metric_history(run.info.run_id, name)
        assert [metric.step for metric in history] == list(steps)
        assert [m.timestamp for m in history] == sorted(m.timestamp for m in history)
    system = next(name for name in run.data.metrics if name.startswith("system/"))
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, system)]
    assert steps == list(range(len(steps)))


def file_of(folder: Path):
    return (folder / "more.txt").open("a")
