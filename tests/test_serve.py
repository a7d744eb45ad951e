"""`perceiver serve`: a real endpoint of Ray Serve, asked by programs, a browser and attackers."""

import base64
import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import psutil
import pytest
import requests
from browser import browser
from gate_runs import track
from registered_models import owls
from served_endpoint import (
    ask,
    begun,
    check_end,
    free_port,
    is_answered,
    metric,
    replicas_of,
    response_of,
    seconds_of_decoding,
    stopped,
    wait_for,
)
from test_answer_params import bomb
from test_inference import png

from pipeline.cli.main import main
from pipeline.serving.app import AT_ONCE, WAITING
from pipeline.serving.invocations import AskedModel
from pipeline.serving.page import Page

PNGS = [png(seed) for seed in range(3)]
TEXTS = [base64.b64encode(data).decode() for data in PNGS]
URI = "models:/owls@champion"
TIMEOUT = 10
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tracking store in which an untrained model of images is registered."""
    return owls(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def served(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A model with two replicas: `address`, `process` and the tracking `store`. SIGTERM ends it."""
    folder = tmp_path_factory.mktemp("serve")
    port = free_port()
    command = [sys.executable, "-m", "pipeline", "serve", URI, f"--port={port}", "--json",
               f"--tracking-uri={store}", "--max-body-mib=1", f"--timeout={TIMEOUT}",
               "--replicas=2"]  # fmt: skip
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


def test_it_answers_as_mlflow_s_server_does(served: SimpleNamespace) -> None:
    track(served.store)
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
        ([1], "the body is no JSON object"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(
    served: SimpleNamespace, body: Any, line: str
) -> None:
    status, answer = ask(served, body)
    assert status == 400
    assert line in answer["message"] and "\n" not in answer["message"]


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"top_k": "three"}, "params: top_k is a str; give a whole number"),
        ({"top_k": 1.5}, "params: top_k is a float; give a whole number"),
        ({"attention_map": 1}, "params: attention_map is a int; give a boolean"),
        ({"topk": 3}, "params: this model does not take topk; it takes top_k, attention_map"),
        ([1], "params: a list; give them by name, as an object"),
        ("", "params: a str; give them by name, as an object"),
    ],
)
def test_bad_params_are_refused_in_one_line(
    served: SimpleNamespace, params: Any, line: str
) -> None:
    status, answer = ask(served, {"inputs": TEXTS, "params": params})
    assert (status, answer) == (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": line})


@pytest.mark.parametrize(
    ("data", "kind", "line"),
    [
        (b'{"inputs": ["9876543210"], "params": {"top_k": three}}', "application/json",
         "the body is no JSON: Expecting value: line 1 column 48 (char 47)"),
        (b'{"inputs": ' + b"9876543210" * 500 + b"}", "application/json", "the body is no JSON: "),
        (b"\xff9876543210", "application/json", "the body is no JSON: "),
        (b"PAR19876543210", "application/vnd.apache.parquet", "Failed to parse input as a Pandas"),
        (b"x\n9876543210,2", "text/csv", "the input does not fit the model: Incompatible input"),
    ],
    ids=["params", "number", "text", "parquet", "schema"],
)  # fmt: skip
def test_a_refusal_repeats_no_request_and_shows_no_trace(
    served: SimpleNamespace, data: bytes, kind: str, line: str
) -> None:
    headers = {"content-type": kind}
    answer = requests.post(f"{served.address}/invocations", data=data, headers=headers, timeout=60)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error_code", "message"}
    message = answer.json()["message"]
    assert message.startswith(line) and "\n" not in message
    for word in ("9876543210", "Traceback", "site-packages", ".py"):
        assert word not in message


def test_hostile_requests_are_refused_and_the_next_one_is_answered(
    served: SimpleNamespace,
) -> None:
    url = f"{served.address}/invocations"
    large = b'{"inputs": ["' + b"A" * 2**21 + b'"]}'

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(large), 2**16):
            yield large[start : start + 2**16]

    def status(data: Any, headers: dict[str, str] = JSON) -> int:
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


# --- time and load ---


def test_each_replica_answers(served: SimpleNamespace) -> None:
    for still in replicas_of(served):
        with ThreadPoolExecutor(8) as pool, stopped(still):
            asked = [pool.submit(ask, served, {"inputs": [TEXTS[0]]}) for _ in range(8)]
            first = next(as_completed(asked, timeout=60)).result()
        assert first[0] == 200, "the other one answered"


def test_what_takes_too_long_is_refused_and_the_next_one_is_answered(
    served: SimpleNamespace,
) -> None:
    endless = begun(served)
    with stopped(*replicas_of(served)), ThreadPoolExecutor(2) as pool:
        late = pool.submit(ask, served, {"inputs": TEXTS})
        health = requests.get(f"{served.address}/health", timeout=60)
        assert health.status_code == 503
        assert health.json() == {"status": "no replica answers (TimeoutError)"}
        line = f"no answer within {TIMEOUT} s"
        assert late.result() == (504, {"error_code": "DEADLINE_EXCEEDED", "message": line})
        wait_for(lambda: metric(served, "perceiver_inputs_waiting") == 0)  # they are given up
    line = f"no whole body within {TIMEOUT} s"
    assert response_of(endless) == (408, {"error_code": "BAD_REQUEST", "message": line})
    assert ask(served, {"inputs": TEXTS})[0] == 200


def test_more_than_can_wait_is_refused_while_health_is_answered(served: SimpleNamespace) -> None:
    most = AT_ONCE + WAITING
    with ExitStack() as stack:
        for _ in range(most):
            stack.enter_context(begun(served))
        one_more = stack.enter_context(begun(served))
        while not is_answered(one_more):  # one of the others has yet to arrive
            one_more = stack.enter_context(begun(served))
        line = f"{most} requests are worked on or wait; send this one again later"
        refused = (503, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": line})
        assert response_of(one_more) == refused
        assert ask(served, {"inputs": TEXTS}) == refused
        assert requests.get(f"{served.address}/health", timeout=60).status_code == 200
    wait_for(lambda: ask(served, {"inputs": TEXTS})[0] == 200)


def test_a_request_whose_replica_dies_is_refused_and_the_other_one_answers(
    served: SimpleNamespace,
) -> None:
    slow = base64.b64encode(bomb(8000)).decode()
    before = {each: seconds_of_decoding(each) for each in replicas_of(served)}
    busy = list[psutil.Process]()

    def is_decoding() -> bool:
        busy[:] = [each for each in before if seconds_of_decoding(each) > before[each] + 0.1]
        return bool(busy)

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, served, {"inputs": [slow] * 4})
        wait_for(is_decoding)
        busy[0].kill()
        line = "the copy of the model that was asked has ended; send the request again"
        assert asked.result() == (
            503, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": line},
        )  # fmt: skip
    assert ask(served, {"inputs": TEXTS})[0] == 200


def test_requests_at_the_same_time_are_answered_together(served: SimpleNamespace) -> None:
    names = ("perceiver_batch_inputs_count", "perceiver_inputs_total")
    before = {name: metric(served, name) for name in names}
    count = 48
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda n: ask(served, {"inputs": [TEXTS[n % 3]]}), range(count)))
    assert [status for status, _ in answers] == [200] * count
    labels = [answer["predictions"][0]["label"] for _, answer in answers]
    assert labels == labels[:3] * (count // 3), "each got its own answer"
    batches, inputs = (metric(served, name) - before[name] for name in names)
    assert inputs == count
    assert batches < count, "some were answered together"


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


def test_a_model_that_fails_says_why_in_the_log_alone(loaded: Callable[..., Any]) -> None:
    model, lines = loaded("image"), list[logging.LogRecord]()
    predictor = model.unwrap_python_model().predictor
    predictor.model = None
    handler = logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign]  # it only collects
    logging.getLogger("ray.serve").addHandler(handler)
    body = json.dumps({"inputs": TEXTS}).encode()
    try:
        answer = AskedModel(model, predictor.card.objective).respond(body, "application/json")
    finally:
        logging.getLogger("ray.serve").removeHandler(handler)
    assert answer.status_code == 500
    line = "the server failed; its log says why"
    assert json.loads(answer.body) == {"error_code": "INTERNAL_ERROR", "message": line}
    assert lines[0].exc_info is not None and "NoneType" in str(lines[0].exc_info[1])


def test_the_page_refers_to_nothing_elsewhere() -> None:
    from test_inference import image_card

    page = Page("models:/<b>x</b>/1", image_card())
    assert "<b>" not in page.html and "&lt;b&gt;" in page.html
    assert not re.search(r"(src|href)=\"(?!data:)", page.html)
    assert "http" not in page.html.replace("http://www.w3.org/2000/svg", "")
