"""Registries that fail, that are cut off half way, that two use at once, and that go back."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from gate_runs import (
    NAME,
    some_rows,
    table_config,
    track,
    write_table_set,
)
from mlflow.tracking import MlflowClient

from pipeline.demo.demo import start_again
from pipeline.errors import UserError
from pipeline.registry.predict import load_model
from pipeline.registry.registration import champion_of
from pipeline.runs.tracking import open_run, run_config

ROWS = some_rows(0, 300)
MISSING = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered Model not found"}
ANSWERS: dict[str, tuple[int, str, bytes]] = {
    "503": (503, "application/json", b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "x"}'),
    "500": (500, "text/plain", b"oops"),
    "401": (401, "text/html", b"<h1>log in</h1>"),
    "403": (403, "application/json", b'{"error_code": "PERMISSION_DENIED", "message": "no"}'),
    "404 of a proxy": (404, "text/html", b"<h1>not found</h1>"),
    "404 of a gateway": (404, "application/json", b'{"message": "no route", "error_code": 404}'),
    "404 of another service": (404, "application/json", b'{"error_code": "NOT_FOUND"}'),
    "a page in place of an answer": (200, "text/html", b"<html>log in</html>"),
    "no JSON": (200, "application/json", b'{"model_version": {"name": '),
    "another type": (200, "application/json", b'{"model_version": [1, 2]}'),
    "an empty answer": (200, "application/json", b"{}"),
    "another model's": (
        200,
        "application/json",
        b'{"model_version": {"name": "x", "version": "1"}}',
    ),
    "a reset": (0, "", b""),
}


@contextlib.contextmanager
def server_of(answer: tuple[int, str, bytes]) -> Iterator[str]:
    """A server that answers everything alike; status 0 hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = answer
            if not status:
                self.connection.close()
                return
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_registry_that_fails_is_not_one_without_a_champion(kind: str, no_retries: None) -> None:
    with server_of(ANSWERS[kind]) as uri, pytest.raises(UserError) as failed:
        champion_of(MlflowClient(uri), NAME, "champion")
    assert str(failed.value).startswith(f"{NAME}@champion: ")
    assert "\n" not in str(failed.value)


def test_only_its_own_not_found_means_none(no_retries: None) -> None:
    with server_of((404, "application/json", json.dumps(MISSING).encode())) as uri:
        assert champion_of(MlflowClient(uri), NAME, "champion") is None


def test_other_questions_take_a_failure_for_no_answer_either(
    no_retries: None, tmp_path: Path
) -> None:
    """A failing server must not look like one without the run, or the model."""
    config = table_config(tmp_path, "first")
    shard_set = write_table_set(config, ROWS[:200], ROWS[200:])
    known = {"run": {"info": {"run_id": "a" * 32, "experiment_id": "1"}, "data": {"tags": [
        {"key": "perceiver.kind", "value": "train"}]}}}  # fmt: skip
    with server_of(ANSWERS["503"]) as uri:
        failing = MlflowClient(uri)
        with pytest.raises(UserError, match=r"run a+: MLflow fails"):
            run_config(failing, "a" * 32)
        track(uri)
        with pytest.raises(UserError, match=r"models:/rows@champion: "):
            load_model(failing, f"models:/{NAME}@champion")
        tracking = {"uri": uri}
        remote = config.model_copy(update={"tracking": config.tracking.model_copy(update=tracking)})
        with (
            pytest.raises(UserError),
            open_run(remote, kind="train", shard_set=shard_set, run_id="a" * 32),
        ):
            pytest.fail("a second run would have been made")
        with pytest.raises(UserError):
            start_again(remote)
    with server_of((200, "application/json", json.dumps(known).encode())) as uri:
        track(uri)
        with pytest.raises(UserError, match=r"config\.yaml of run a+: MLflow fails"):
            run_config(MlflowClient(uri), "a" * 32)
