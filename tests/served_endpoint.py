"""A running `perceiver serve`: how tests ask it, and what they do to its replicas."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPResponse
from select import POLLIN, poll
from types import SimpleNamespace
from typing import Any

import psutil
import requests


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


def replicas_of(served: SimpleNamespace) -> list[psutil.Process]:
    """The processes of the model's copies."""
    started = psutil.Process(served.process.pid).children(recursive=True)
    found = [each for each in started if "ServeReplica:perceiver:Model" in " ".join(each.cmdline())]
    assert len(found) == 2
    return found


def seconds_of_decoding(replica: psutil.Process) -> float:
    times = [each.cpu_times() for each in replica.children(recursive=True)]
    return sum(each.user + each.system for each in times)


@contextmanager
def stopped(*processes: psutil.Process) -> Iterator[None]:
    """Let processes stand still for a while."""
    for each in processes:
        each.suspend()
    try:
        yield
    finally:
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.resume()


def begun(served: SimpleNamespace) -> socket.socket:
    """A request whose body never ends."""
    host, port = served.address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n{"
    )
    return connection


def is_answered(connection: socket.socket) -> bool:
    """Whether an answer comes within a second. `select` takes no descriptor above 1,023."""
    waiting = poll()
    waiting.register(connection, POLLIN)
    return bool(waiting.poll(1000))


def response_of(connection: socket.socket) -> tuple[int, Any]:
    answer = HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
