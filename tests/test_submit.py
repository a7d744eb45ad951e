"""What a job is sent: a configuration whose paths mean the same on every machine."""

import http.server
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.jobs import run_job
from pipeline.cli.arguments import spelled
from pipeline.cli.parser import parse
from pipeline.cli.submit import _with_resolved_config
from pipeline.config.load import load_config
from pipeline.errors import UserError

AWKWARD = "exp #2: [v2] ünï %41 ?a"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / AWKWARD
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_jobs_configuration_is_resolved_and_its_paths_are_absolute(
    here: Path, tmp_path: Path
) -> None:
    command = ["preprocess", "digits", "--fresh", "data.train=raw #1/train", "shards=sets/a"]
    args = parse([*command, "output=out", "data.test=s3://b/t", "training.epochs=7"])
    sent = _with_resolved_config(args, tmp_path)
    assert spelled(sent) == ["preprocess", "--fresh", "--", "digits.yaml"]
    config = load_config(str(tmp_path / "digits.yaml"))
    assert config.output == str(here / "out")
    assert config.shards == str(here / "sets" / "a")
    assert config.data.train == str(here / "raw #1" / "train")
    assert config.data.test == "s3://b/t"
    assert config.training.epochs == 7


def test_the_other_verbs_arguments_are_absolute_too(here: Path) -> None:
    command = ["predict", "models:/m@c", "a b.png", "--to", "out.csv", "--max-bad-fraction=0.5"]
    sent = spelled(parse([*command, "--json", "--", "-dash.png"]))
    assert parse(sent).inputs == [str(here / "a b.png"), str(here / "-dash.png")]
    assert parse(sent).model == "models:/m@c"
    assert parse(sent).to == here / "out.csv"
    assert parse(sent).output == str(here / "runs")
    assert parse(sent).max_bad_fraction == 0.5
    assert parse(sent).json
    assert not parse(sent).debug
    assert shlex.split(shlex.join(sent)) == sent


def test_an_evaluation_s_folders_and_reports_are_absolute_in_a_job(here: Path) -> None:
    (here / "run" / "stages").mkdir(parents=True)
    (here / "set").mkdir()
    (here / "m").mkdir()
    assert parse(["evaluate", "m"]).model == "m", "it may be a registered model"
    assert parse(["evaluate", "./m"]).model == str(here / "m")
    command = ["evaluate", "run", "set", "cluster.num_workers=2", "--json=a.json", "--html=b.html"]
    sent = parse(spelled(parse(command)))
    assert sent.model == str(here / "run")
    assert sent.rest == [str(here / "set"), "cluster.num_workers=2"]
    assert (sent.json, sent.html) == (str(here / "a.json"), here / "b.html")
    named = parse(spelled(parse(["evaluate", "models:/m@c", "s3://b/set", "--json"])))
    assert (named.model, named.rest, named.json) == ("models:/m@c", ["s3://b/set"], "-")


def test_a_job_refuses_places_in_its_temporary_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for field in ("output", "shards"):
        with pytest.raises(UserError, match=f"{field}: is 'here', and a Ray job runs in a temp"):
            load_config("digits", ["output=/o", f"{field}=here"])
    assert load_config("digits", ["output=/o", "shards=memory://set"]).shards == "memory://set"


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """A cluster's dashboard that knows no token of ours."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b"Unauthorized: Missing authentication token")

        do_POST = do_PUT = do_GET  # noqa: N815  # http.server names them so

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_token_that_is_missing_is_named_with_its_variable(
    refusing_server: str, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE=token") as caught:
        run_job(
            ["-c", ""], address=refusing_server, working_dir=tmp_path, environment={}, wait=True,
            follow=print,
        )  # fmt: skip
    assert len(str(caught.value).splitlines()) == 1
