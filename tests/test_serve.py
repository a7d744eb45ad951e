"""`perceiver serve`: a real endpoint of Ray Serve, asked by programs, a browser and attackers."""

import base64
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import psutil
import pytest
import requests
from browser import browser
from registered_models import owls
from test_inference import png

from pipeline.cli.main import main
from pipeline.serving.page import Page

PNGS = [png(seed) for seed in range(3)]
TEXTS = [base64.b64encode(data).decode() for data in PNGS]
URI = "models:/owls@champion"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tracking store in which an untrained model of images is registered."""
    return owls(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def served(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A served model: its `address`, its `process` and the tracking `store`. SIGTERM ends it."""
    folder = tmp_path_factory.mktemp("serve")
    port = free_port()
    command = [sys.executable, "-m", "pipeline", "serve", URI, f"--port={port}", "--json",
               f"--tracking-uri={store}", "--max-body-mib=1", "--timeout=30"]  # fmt: skip
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (folder / "log").read_text()
            found = SimpleNamespace(**json.loads(line), process=process, store=store)
            yield found
            check_end(process)
        finally:
            process.kill()


def check_end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM ends the command, and all that it has started."""
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(started, timeout=60)
    assert [each.cmdline()[:3] for each in alive if each.is_running()] == []


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ask(served: SimpleNamespace, body: Any, **options: Any) -> tuple[int, Any]:
    answer = requests.post(f"{served.address}/invocations", json=body, timeout=60, **options)
    assert "Traceback" not in answer.text
    return answer.status_code, answer.json()


def metric(served: SimpleNamespace, name: str) -> float:
    text = requests.get(f"{served.address}/metrics", timeout=60).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_it_answers_as_mlflow_s_server_does(served: SimpleNamespace) -> None:
    mlflow.set_tracking_uri(served.store)
    wanted = mlflow.pyfunc.load_model("models:/owls/1").predict(PNGS)
    assert served.model_uri == "models:/owls/1", "the alias was looked up once"
    for body in (
        {"inputs": TEXTS},
        {"instances": [{"b64": text} for text in TEXTS]},
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXTS]}},
        {"dataframe_records": [{"image": text} for text in TEXTS]},
    ):
        status, answer = ask(served, body)
        assert status == 200
        for row, expected in zip(answer["predictions"], wanted.to_dict("records"), strict=True):
            probabilities = row.pop("probabilities")
            assert probabilities == pytest.approx(expected.pop("probabilities"), abs=1e-5)
            assert row.pop("probability") == pytest.approx(expected.pop("probability"), abs=1e-5)
            assert row == expected


def test_it_opens_no_path(served: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(PNGS[0])
    for path in (tmp_path / "there.png", "/etc/passwd", "file:///etc/passwd"):
        status, answer = ask(served, {"inputs": [str(path)]})
        (row,) = answer["predictions"]
        assert (status, row["label"]) == (200, None)
        assert row["error"] in (
            "not base64; send the file's content in base64, not its path",
            "no image format that Pillow knows",
        )


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"inputs": ["x"] * 1001}, "1001 inputs in one request; at most 1000 are taken"),
        ({"inputs": {"a": 1}}, "un-named"),
        ({"nothing": []}, "exactly one of the input fields"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(
    served: SimpleNamespace, body: Any, line: str
) -> None:
    status, answer = ask(served, body)
    assert status == 400
    assert line in answer["message"] and "\n" not in answer["message"]


def test_hostile_requests_are_refused_and_the_next_one_is_answered(
    served: SimpleNamespace,
) -> None:
    url = f"{served.address}/invocations"
    kind = {"content-type": "application/json"}
    large = b'{"inputs": ["' + b"A" * 2**21 + b'"]}'

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(large), 2**16):
            yield large[start : start + 2**16]

    def status(data: Any, headers: dict[str, str] = kind) -> int:
        answer = requests.post(url, data=data, headers=headers, timeout=60)
        assert "Traceback" not in answer.text
        return answer.status_code

    assert status(large) == 413
    assert status(pieces()) == 413, "without a declared length"
    assert status(b"[" * 100_000) == 400
    assert status(b'{"inputs": ["\xff"]}') == 400
    assert status(b"{}", {"content-type": "application/x-pickle"}) == 415
    assert status(b"{}", {"content-type": ""}) == 415
    assert requests.put(url, data=b"{}", timeout=60).status_code == 405
    for path in ("/docs", "/openapi.json", "/../../etc/passwd", "/%2e%2e/etc/passwd", "/static/x"):
        assert requests.get(f"{served.address}{path}", timeout=60).status_code == 404
    bomb = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 1000).decode()
    found, answer = ask(served, {"inputs": [bomb, TEXTS[0]]})
    assert found == 200
    assert [row["error"] is None for row in answer["predictions"]] == [False, True]


def test_a_host_that_hangs_up_in_the_middle_costs_nothing(served: SimpleNamespace) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
        )
    assert ask(served, {"inputs": [TEXTS[0]]})[0] == 200


def test_requests_at_the_same_time_are_answered_together(served: SimpleNamespace) -> None:
    before = {name: metric(served, name) for name in ("perceiver_batch_inputs_count",
                                                      "perceiver_inputs_total")}  # fmt: skip
    count = 48
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda n: ask(served, {"inputs": [TEXTS[n % 3]]}), range(count)))
    assert [status for status, _ in answers] == [200] * count
    labels = [answer["predictions"][0]["label"] for _, answer in answers]
    assert labels == labels[:3] * (count // 3), "each got its own answer"
    inputs = metric(served, "perceiver_inputs_total") - before["perceiver_inputs_total"]
    batches = metric(served, "perceiver_batch_inputs_count")
    batches -= before["perceiver_batch_inputs_count"]
    assert inputs == count
    assert batches <= count / 2


def test_health_and_metrics(served: SimpleNamespace) -> None:
    answer = requests.get(f"{served.address}/health", timeout=60)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "model": "models:/owls/1"})
    for name in ("/" + "x" * 50, "/y"):
        requests.get(f"{served.address}{name}", timeout=60)
    text = requests.get(f"{served.address}/metrics", timeout=60).text
    assert 'perceiver_requests_total{path="other",status="404"}' in text
    assert "xxxx" not in text
    assert re.search(r'perceiver_request_seconds_bucket\{le="[0-9.]+",path="/health"\}', text)


DROP = """
(() => {
  const bytes = Uint8Array.from(atob('%s'), (each) => each.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], %s));
  const target = document.querySelector('.drop');
  target.dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true }));
})()
"""


def test_the_page_shows_the_answer_for_a_dropped_file(
    served: SimpleNamespace, tmp_path: Path
) -> None:
    _, answer = ask(served, {"inputs": [TEXTS[0]]})
    (row,) = answer["predictions"]
    name = "<img src=x onerror=alert(1)>.png"
    with browser(tmp_path / "profile") as tab:
        tab.open(f"{served.address}/")
        assert tab.value("document.title") == "models:/owls/1"
        tab.value(DROP % (TEXTS[0], json.dumps(name)))
        tab.until("document.querySelector('#answer td') !== null")
        assert tab.value("document.querySelector('#answer td').textContent") == row["label"]
        shown = tab.value("document.querySelector('#answer meter').value")
        assert shown == pytest.approx(max(row["probabilities"].values()), abs=1e-4)
        tab.until("(document.querySelector('#attention img') || {}).naturalWidth > 0")
        text = tab.value("document.querySelector('.drop span').textContent")
        assert text.startswith(name), "a file's name is text"
        tab.value(DROP % (base64.b64encode(b"no image").decode(), "'x.png'"))
        tab.until("document.querySelector('#answer .error') !== null")
        assert "image" in tab.value("document.querySelector('#answer .error').textContent")
        assert tab.errors == []
        # Scripts that are not the page's own do not run, and nothing leaves for elsewhere.
        tab.value("document.body.append(Object.assign(document.createElement('script'), "
                  "{textContent: 'window.evil = 1'}))")  # fmt: skip
        assert tab.value("window.evil === undefined")
        assert tab.value("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'blocked')") == (
            "blocked"
        )
        assert any("Content Security Policy" in each for each in tab.errors)


# --- without a server ---


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["models:/owls@nobody"], "models:/owls@nobody: there is no model or alias of this name"),
        (["models:/owls/7"], "models:/owls/7: "),
        ([URI, "--port=70000"], "--port 70000: give 1 to 65535"),
        ([URI, "--timeout=0"], "--timeout 0.0: give 1 to 86400 seconds"),
        ([URI, "--num-gpus=1.5"], "--num-gpus 1.5: above 1, give a whole number"),
        ([URI, "--host=203.0.113.7"], "--host 203.0.113.7 --port 8000: cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    options: list[str], line: str, store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options, f"--tracking-uri={store}"]) == 2
    (told,) = capfd.readouterr().err.splitlines()
    assert told.startswith(f"perceiver serve: {line}")


def test_a_taken_port_is_named(store: str, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", URI, f"--port={port}", f"--tracking-uri={store}"]) == 2
    assert f"--port {port}: cannot be listened on: Address already" in capfd.readouterr().err


def test_the_page_refers_to_nothing_elsewhere() -> None:
    from test_inference import image_card

    page = Page("models:/<b>x</b>/1", image_card())
    assert "<b>" not in page.html and "&lt;b&gt;" in page.html
    assert not re.search(r"(src|href)=\"(?!data:)", page.html)
    assert "http" not in page.html.replace("http://www.w3.org/2000/svg", "")
