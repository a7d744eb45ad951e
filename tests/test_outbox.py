"""What is logged to MLflow is on disk first, and there once, whatever happens on the way."""

import socket
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline.runs import outbox
from pipeline.runs.mlflow_client import new_client
from pipeline.runs.outbox import DRIVER, Outbox, RunRef, deliver, deliver_folder, deliver_run
from pipeline.runs.run_logger import RunLogger
from pipeline.training.reports.pictures import confusion_picture


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def store(uri: str) -> MlflowClient:
    return new_client(uri)


@pytest.fixture
def run(store: MlflowClient, uri: str, tmp_path: Path) -> RunRef:
    artifacts = (tmp_path / "artifacts").as_uri()
    experiment = store.create_experiment(tmp_path.name, artifact_location=artifacts)
    return RunRef(uri, store.create_run(experiment).info.run_id, str(tmp_path / "outbox"))


@pytest.fixture
def gone(run: RunRef) -> RunRef:
    """The same run where no server answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
    return RunRef(f"http://user:secret@127.0.0.1:{port}", run.run_id, run.outbox)


@pytest.fixture(autouse=True)
def _no_tries_by_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(outbox, "_refused_at", {})


def history(store: MlflowClient, run: RunRef, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in store.get_metric_history(run.run_id, name))


def test_entries_arrive_in_order_with_the_time_at_which_they_were_logged(store, run) -> None:
    box = Outbox(run, "metrics")
    for step in range(2500):
        box.metrics({"loss": step / 2, "bad": float("nan")}, step)
    box.tags({"a": "b"})
    box.end("FINISHED")
    assert deliver_run(run) is None
    assert history(store, run, "loss") == [(step, step / 2) for step in range(2500)]
    found = store.get_run(run.run_id)
    assert (found.info.status, found.data.tags["a"]) == ("FINISHED", "b")
    assert "bad" not in found.data.metrics


def test_a_picture_of_a_step_is_there_once_however_often_the_step_is_computed(store, run) -> None:
    png = confusion_picture({"classes": ["a", "b"], "counts": [[3, 1], [0, 2]]})
    assert png is not None
    for _ in range(2):  # the second process repeats the steps of the first
        logger = RunLogger(run, system_metrics_seconds=None, node=0, writes_metrics=True)
        for step in (1, 2):
            logger.image("confusions", png, step)
            logger.image("confusions", png, step)
        logger.close()
    images = [each.path for each in store.list_artifacts(run.run_id, "images")]
    assert len(images) == 4, "a picture and a small one of each step"
    assert deliver_folder(run.tracking_uri, run.outbox) is None
    assert not Path(run.outbox).exists()


def test_without_a_server_all_is_kept_and_delivered_later(store, run, gone) -> None:
    first, second = Outbox(gone, "metrics"), Outbox(gone, DRIVER)
    first.metrics({"loss": 1.0}, 1)
    second.tags({"a": "b"})
    second.end("FAILED")
    told = deliver_folder(gone.tracking_uri, run.outbox)
    assert told is not None
    assert told.startswith("3 entries for MLflow at http://***@127.0.0.1:")
    assert "secret" not in told and str(run.outbox) in told and len(told.splitlines()) == 1
    assert Path(run.outbox).exists()
    assert deliver_folder(run.tracking_uri, run.outbox) is None
    assert history(store, run, "loss") == [(1, 1.0)]
    assert store.get_run(run.run_id).info.status == "FAILED"
    assert not Path(run.outbox).exists()


def test_a_server_that_is_gone_is_not_asked_for_every_entry(gone, monkeypatch) -> None:
    Outbox(gone, DRIVER).tags({"a": "b"})
    assert "are not delivered" in (deliver_run(gone) or "")
    monkeypatch.setattr(outbox, "new_client", lambda uri: pytest.fail("asked again"))
    assert deliver_run(gone) == "MLflow did not answer a moment ago"


def test_what_is_delivered_twice_is_there_once(store, run) -> None:
    box = Outbox(run, "metrics")
    for step in range(5):
        box.metrics({"loss": 0.5}, step)
    deliver(box.path, store)
    box.path.with_suffix(".sent").unlink()  # killed between the delivery and the note of it
    box.metrics({"loss": 0.25}, 5)
    deliver(box.path, store)
    assert history(store, run, "loss") == [*((step, 0.5) for step in range(5)), (5, 0.25)]


def test_half_a_line_of_a_killed_process_and_a_ruined_line_cost_only_themselves(store, run) -> None:
    box = Outbox(run, "metrics")
    box.metrics({"loss": 1.0}, 1)
    with box.path.open("ab") as file:
        file.write(b'{"metrics": [["lo')
    deliver(box.path, store)
    box = Outbox(run, "metrics")
    box.metrics({"loss": 2.0}, 2)
    with box.path.open("ab") as file:
        file.write(b"\0\0\0\n")
    box.metrics({"loss": 3.0}, 3)
    deliver(box.path, store)
    assert history(store, run, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_files_are_logged_when_the_server_is_there(store, run, tmp_path) -> None:
    (tmp_path / "plot.png").write_bytes(b"plot")
    Outbox(run, DRIVER).artifact(tmp_path / "plot.png")
    assert deliver_run(run) is None
    assert [artifact.path for artifact in store.list_artifacts(run.run_id)] == ["plot.png"]


def logger(run: RunRef, seconds: float | None = None) -> RunLogger:
    return RunLogger(run, system_metrics_seconds=seconds, node=0, writes_metrics=True)


def test_a_restarted_training_logs_no_step_again(store, run) -> None:
    for last in (3, 6):  # the second time from step 1 on, as from an older checkpoint
        log = logger(run)
        for step in range(1, last):
            log.log({"loss": float(last)}, step)
        log.close()
    assert history(store, run, "loss") == [(1, 3.0), (2, 3.0), (3, 6.0), (4, 6.0), (5, 6.0)]


def test_a_logger_without_a_server_says_so_once_and_waits_for_nothing(store, run, gone) -> None:
    log = logger(gone, seconds=0.01)
    news: list[str] = []
    for step in range(50):
        log.log({"loss": 1.0}, step)
        news += log.news()
    for _ in range(100):
        if news:
            break
        log._couriers[0]._stop.wait(0.1)
        news += log.news()
    (line,) = news
    assert "the training goes on" in line and "secret" not in line
    log.close()
    assert deliver_run(run) is None
    assert len(history(store, run, "loss")) == 50
    names = store.get_run(run.run_id).data.metrics
    assert any(name.startswith("system/node-0/") for name in names)


def test_system_metrics_go_on_counting_in_a_resumed_run(store, run) -> None:
    for _ in range(2):
        logger(run, seconds=600).close()
    name = next(n for n in store.get_run(run.run_id).data.metrics if n.startswith("system/"))
    assert [step for step, _ in history(store, run, name)] == [0, 1]


def test_a_server_that_does_not_answer_in_time_holds_nothing_up(store, run) -> None:
    with socket.socket() as silent:  # takes requests and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        slow = RunRef(f"http://127.0.0.1:{silent.getsockname()[1]}", run.run_id, run.outbox)
        log = logger(slow)
        for step in range(1000):
            log.log({"loss": float(step)}, step)
        (path,) = Path(run.outbox).glob("*.jsonl")
        assert outbox.num_waiting(path) == 1000
        connection, _ = silent.accept()  # it was asked, and has not answered yet
        connection.close()
    log.close()
    assert deliver_run(run) is None
    assert len(history(store, run, "loss")) == 1000
