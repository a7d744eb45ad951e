"""What a job is sent: a configuration whose paths mean the same on every machine."""

import http.server
import random
import shlex
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private import ray_constants

from cluster.errors import ClusterError
from cluster.job_package import JobPackage
from cluster.jobs import run_job
from pipeline.cli.arguments import spelled
from pipeline.cli.main import main
from pipeline.cli.parser import parse
from pipeline.cli.submit import JobFiles, _program, _python, _with_resolved_config
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
    package = JobPackage(tmp_path / "job.zip")
    sent = _with_resolved_config(args, package)
    package.close()
    zipfile.ZipFile(tmp_path / "job.zip").extractall(tmp_path)
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
    assert parse(sent).to == str(here / "out.csv")
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
            ["true"], address=refusing_server, working_dir=tmp_path, environment={}, python={},
            wait=True, follow=print,
        )  # fmt: skip
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    for name in ("data/a.bin", "data/b.bin", "src/plugin.py", ".git/HEAD", "src/__pycache__/x.pyc"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(0).randbytes(1000))
    return folder


def test_a_job_s_files_are_those_that_no_pattern_excludes(folder: Path, tmp_path: Path) -> None:
    package = JobPackage(tmp_path / "job.zip")
    package.add_folder(folder, ["data/b.*"])
    package.add_text("a.yaml", "name: a")
    size = package.close()
    assert sorted(zipfile.ZipFile(package.path).namelist()) == [
        "a.yaml", "data/a.bin", "src/plugin.py",
    ]  # fmt: skip
    assert size == package.path.stat().st_size


def test_files_above_ray_s_limit_are_refused_with_the_largest_folders(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray_constants.DASHBOARD_CLIENT_MAX_SIZE == 100 * 1024**2
    monkeypatch.setattr(ray_constants, "DASHBOARD_CLIENT_MAX_SIZE", 1024**2)
    (folder / "data" / "c.bin").write_bytes(random.Random(0).randbytes(2 * 1024**2))
    package = JobPackage(tmp_path / "job.zip")
    package.add_folder(folder, [])
    with pytest.raises(ClusterError, match=r"2\.0 MiB, and Ray takes less than 1\.0 ") as caught:
        package.close()
    assert "the largest are data/ 2.0 MiB, src/" in str(caught.value)
    assert "--exclude data" in str(caught.value)


def test_files_that_hide_our_code_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "pipeline.py").touch()
    with pytest.raises(ClusterError, match=r"--exclude pipeline\.py"):
        JobPackage(tmp_path / "a.zip").add_folder(folder, [])
    JobPackage(tmp_path / "b.zip").add_folder(folder, ["pipeline.py"])


NOWHERE = "http://127.0.0.1:9"
SECRET = "planted-secret-4711"
REFUSED = [
    (["--", "train", "digits", f"tracking.uri=https://me:{SECRET}@host"], "tracking.uri has a"),
    (["--", "evaluate", "RUN", "--shards", f"https://host/set?sig={SECRET}"], "an address in the"),
    (["--", "predict", "models:/m@c", "a", "--tracking-uri", f"https://me:{SECRET}@host"],
     "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    (["--requirements", "packages.txt", "--python", "/p", "--", "train", "digits"], "leave --pyth"),
    (["--requirements", "nowhere.txt", "--", "train", "digits"], "it cannot be read: No such file"),
    (["--requirements", "secret.txt", "--", "train", "digits"], "write ${NAME} for it"),
    (["--requirements", "local.txt", "--", "train", "digits"], "names a file of this machine"),
    (["--working-dir", "nowhere", "--", "train", "digits"], "--working-dir nowhere: there is no"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_what_a_job_must_not_show_or_cannot_have_is_refused(
    arguments: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "packages.txt").write_text("ray==2.60.0\n")
    (here / "secret.txt").write_text(f"--index-url https://me:{SECRET}@host/simple\nray\n")
    (here / "local.txt").write_text("-e .\n")
    assert main(["submit", "--address", NOWHERE, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert SECRET not in line


def test_ray_installs_requirements_and_gets_our_code_beside_them(here: Path) -> None:
    (here / "packages.txt").write_text("# pinned\nray==2.60.0  # the cluster's\n\ntorch\n")
    files = JobFiles(requirements=here / "packages.txt")
    assert _python(files) == {"uv": {"packages": ["ray==2.60.0", "torch"]}}
    assert _program(files) == ["python"]
    assert _python(JobFiles(python="/opt/python")) == {"py_executable": "/opt/python"}
    assert _program(JobFiles(python="/opt/python")) == ["/opt/python", "-P"]
    package = JobPackage(here / "job.zip")
    package.add_own_code()
    package.close()
    assert "pipeline/cli/submit.py" in zipfile.ZipFile(here / "job.zip").namelist()


def test_a_job_without_its_secret_ends_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["train", "digits", "output=/o", "cluster.deploy.secrets=[NOT_SET]"]) == 2
    assert "NOT_SET is not set on the cluster's machines" in capsys.readouterr().err


def test_jobs_needs_an_id_except_for_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["stop"], ["list", "raysubmit_1"], ["status", "raysubmit_1", "--follow"]):
        assert main(["jobs", "--address", NOWHERE, *command]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
