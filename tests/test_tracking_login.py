"""A tracking server that wants a name and a password: what is sent, and what is said without."""

import base64
import http.server
import threading
from collections.abc import Iterator

import pytest

from pipeline.errors import UserError
from pipeline.runs.mlflow_client import client
from pipeline.runs.mlflow_errors import mlflow_answers

NAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
SECRET = "planted-secret-4711"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers like MLflow with `--app-name basic-auth`."""

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        users = {self.basic("me"): 200, self.basic("guest"): 403}
        status = users.get(given, 401)
        text = {200: "{}", 403: "Permission denied"}.get(status, "You are not authenticated.")
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_POST = do_GET  # noqa: N815  # http.server names it so

    @staticmethod
    def basic(name: str) -> str:
        return f"Basic {base64.b64encode(f'{name}:{SECRET}'.encode()).decode()}"

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in (NAME, PASSWORD, "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_name_and_the_password_come_from_the_environment(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAME, "me")
    monkeypatch.setenv(PASSWORD, SECRET)
    assert client(uri) is not None


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, f"MLflow wants a name (401); set {NAME} and {PASSWORD}, or MLFLOW_TRACKING_TOKEN"),
        ({NAME: "you", PASSWORD: SECRET}, "MLflow does not accept the name and password"),
        ({NAME: "guest", PASSWORD: SECRET}, "MLflow does not permit this user that (403)"),
    ],
)
def test_a_refused_login_is_one_line_with_the_variables(
    environment: dict[str, str], words: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        client(uri)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"tracking.uri={uri}: ")
    assert words in line
    assert SECRET not in line


def test_a_later_refusal_says_the_same(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "me")
    monkeypatch.setenv(PASSWORD, SECRET)
    mlflow_client = client(uri)
    monkeypatch.setenv(PASSWORD, "changed")
    with (
        pytest.raises(UserError, match="run 1: MLflow does not accept the name and password"),
        mlflow_answers("run 1"),
    ):
        mlflow_client.get_run("1")
