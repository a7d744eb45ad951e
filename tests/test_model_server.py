"""MLflow's own server and command line with a registered model."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from gate_runs import track
from registered_models import owls
from test_inference import png

URI = "models:/owls/1"
PNGS = [png(seed) for seed in range(3)]
TEXTS = [base64.b64encode(data).decode() for data in PNGS]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tracking store in which an untrained model of images is registered."""
    return owls(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def served(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow models serve` on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", URI, "-p", port,
               "-h", "127.0.0.1", "--env-manager", "local"]  # fmt: skip
    folder = tmp_path_factory.mktemp("served")
    # It calls uvicorn by name.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "PATH": path}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 180
        while not _answers(f"http://127.0.0.1:{port}/ping"):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=10).status_code == 200
    except requests.ConnectionError:
        return False


def ask(address: str, body: Any) -> tuple[int, Any]:
    answer = requests.post(address, json=body, timeout=60)
    assert "Traceback" not in answer.text
    return answer.status_code, answer.json()


def test_a_server_takes_media_in_base64(served: str, store: str) -> None:
    track(store)
    wanted = list(mlflow.pyfunc.load_model(URI).predict(PNGS)["label"])
    assert None not in wanted
    for body in (
        {"inputs": TEXTS},
        {"instances": [{"b64": text} for text in TEXTS]},
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXTS]}},
        {"dataframe_records": [{"image": text} for text in TEXTS]},
    ):
        status, answer = ask(served, body)
        assert status == 200
        assert [row["label"] for row in answer["predictions"]] == wanted


def test_a_server_opens_no_path(served: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "there.png").write_bytes(PNGS[0])
    told = set()
    for path in (tmp_path / "there.png", tmp_path / "gone.png", tmp_path / "fifo", "/etc/passwd"):
        for body in ({"inputs": [str(path)]}, {"instances": [{"path": str(path)}]}):
            status, answer = ask(served, body)
            (row,) = answer["predictions"]
            assert (status, row["label"]) == (200, None)
            told.add(row["error"])
    assert told == {
        "not base64; send the file's content in base64, not its path",
        "no image format that Pillow knows",
    }


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"inputs": ["x"] * 1001}, "1001 inputs in one request; at most 1000 are taken"),
        ({"inputs": {"a": 1}}, "un-named"),
        ({"dataframe_records": [{"image": "/etc/passwd"}]}, "Incorrect padding"),
        ({"nothing": []}, "exactly one of the input fields"),
    ],
)
def test_a_server_refuses_a_bad_request_in_one_line(served: str, body: Any, line: str) -> None:
    status, answer = ask(served, body)
    assert status == 400
    assert line in answer["message"] and "\n" not in answer["message"]


@pytest.mark.parametrize("params", [{"top_k": "three"}, {"attention_map": 1}, [1], "top_k"])
def test_a_server_refuses_params_of_another_type(served: str, params: Any) -> None:
    status, answer = ask(served, {"inputs": TEXTS, "params": params})
    assert status == 400, "in MLflow's own words, which repeat the request"
    assert "arameters" in answer["message"] and "stack_trace" not in answer


def test_a_server_refuses_params_that_are_no_json(served: str) -> None:
    body = b'{"inputs": [], "params": {"top_k": three}}'
    headers = {"content-type": "application/json"}
    answer = requests.post(served, data=body, headers=headers, timeout=60)
    assert answer.status_code == 400
    assert "Expecting value: line 1 column 36" in answer.json()["message"]
    assert "stack_trace" not in answer.json()


def test_mlflow_predicts_the_model_s_own_example(store: str, tmp_path: Path) -> None:
    track(store)
    example = mlflow.artifacts.download_artifacts(
        f"{URI}/serving_input_example.json", dst_path=str(tmp_path)
    )
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", URI, "-i", example,
               "-t", "json", "--env-manager", "local", "-o", str(tmp_path / "out")]  # fmt: skip
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    (row,) = json.loads((tmp_path / "out").read_text())["predictions"]
    assert row["label"] in ("cat", "dog", "owl") and row["error"] is None
