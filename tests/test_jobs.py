"""A verb as a Ray job, on a cluster that the test starts on loopback."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from cluster.ray_session import JOB_VARIABLE
from pipeline.cli.main import main
from pipeline.config.tree import Config

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
# The first test's job has a copy of this file, so the value must not be in it.
SECRET_NAME, SECRET = "AWS_SECRET_ACCESS_KEY", secrets.token_hex(16)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`ray start --head` in the foreground; yields the environment for its clients."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        SECRET_NAME: SECRET,
    }
    environment.pop("RAY_ADDRESS", None)
    dashboard = free_port()
    log = (tmp_path_factory.mktemp("head") / "log").open("w")
    # The dashboard's sockets lie there, and a socket's path has at most 107 bytes.
    temporary = tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True)
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1",
         f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
         f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=2",
         f"--ray-client-server-port={free_port()}",
         f"--temp-dir={temporary.name}"],
        env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    environment["RAY_TEMPORARY"] = temporary.name
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 240
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", dashboard)) == 0:
                    break
            assert head.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.3)
        # It answers before it can run jobs. These know by a variable of Ray's that they are one.
        while subprocess.run(
            [BIN / "ray", "job", "submit", "--", "printenv", JOB_VARIABLE],
            env=environment,
            capture_output=True,
        ).returncode:
            assert time.monotonic() < deadline, Path(log.name).read_text()
        yield environment
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        log.close()
        temporary.cleanup()


@pytest.fixture
def job_config(make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path) -> Path:
    config = make_config(tmp_path / "out", f"shards={digit_shards}", "training.epochs=1")
    path = tmp_path / "digits.yaml"
    path.write_text(json.dumps(config.tree()))
    return path


def assert_finished_run(output: Path, world_size: str) -> None:
    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["engine.world_size"] == world_size


def test_ray_job_submit_trains_as_the_readme_says(
    cluster: dict[str, str], job_config: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [BIN / "ray", "job", "submit", "--working-dir", ".", "--",
         "python", "-m", "pipeline", "train", str(job_config), "cluster.num_workers=2"],
        cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in (done.stdout + done.stderr).lower()
    assert_finished_run(tmp_path / "out", "2")


def test_a_job_is_followed_stopped_and_resumed_and_shows_no_secret(
    cluster: dict[str, str], job_config: Path, tmp_path: Path
) -> None:
    """From a folder as people have them: its media beside the YAML, and any name."""
    here = tmp_path / "exp #2 [v2]"
    (here / "flowers").mkdir(parents=True)
    with (here / "flowers" / "large.jpg").open("wb") as file:
        file.truncate(150 * 1024**2)  # more than Ray uploads
    for package in ("pipeline", "shards"):
        (here / package).mkdir()
        (here / package / "__init__.py").write_text("raise RuntimeError('not mine')")
    job_config.rename(here / "digits.yaml")

    def perceiver(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "perceiver", *words], cwd=here, env=cluster, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip

    train = ["--", "train", "digits.yaml", "cluster.num_workers=0",
             f"cluster.deploy.secrets=[{SECRET_NAME}]"]  # fmt: skip
    long = [*train, "name=long", "training.epochs=5000"]

    def stopped_after(words: str) -> str:
        """Submit the long training, stop it once its log has the words, and return its log."""
        done = perceiver("submit", "--json", "--detach", *long)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " KiB to http" in done.stderr, "the size is named"
        job = json.loads(done.stdout.splitlines()[-1])["job_id"]
        deadline = time.monotonic() + 240
        while words not in (log := perceiver("jobs", "logs", job).stdout):
            assert time.monotonic() < deadline, log
            status = json.loads(perceiver("jobs", "status", job, "--json").stdout)["status"]
            assert status in ("PENDING", "RUNNING"), log
        stopped = perceiver("jobs", "stop", job)
        assert (stopped.returncode, "STOPPED" in stopped.stdout) == (0, True), stopped.stderr
        assert job in perceiver("jobs", "list").stdout
        return perceiver("jobs", "logs", job).stdout

    assert "with a checkpoint" in stopped_after("epoch 1/").splitlines()[-1]
    assert "resuming at epoch" in stopped_after("resuming at epoch")

    done = perceiver("submit", "--json", *train, "name=digits")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "SUCCEEDED"
    assert "best checkpoint" in done.stderr, "the job's own words are followed"
    assert_finished_run(tmp_path / "out", "1")

    with urllib.request.urlopen(f"{cluster['RAY_API_SERVER_ADDRESS']}/api/jobs/") as answer:
        dashboard = answer.read().decode()
    assert "-m pipeline train -- digits.yaml" in dashboard
    assert SECRET not in dashboard
    places = [Path(cluster["RAY_TEMPORARY"]), tmp_path / "out"]
    read = {path: path.read_bytes() for place in places for path in place.rglob("*")
            if path.is_file() and not path.is_symlink()}  # fmt: skip
    assert any(path.name == "mlflow.db" for path in read)
    assert any(b"best checkpoint" in content for content in read.values()), "logs are read"
    assert [path for path, content in read.items() if SECRET.encode() in content] == []


def test_a_relative_output_is_refused_inside_a_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    assert main(["train", "digits"]) == 2
    assert "give an absolute path" in capsys.readouterr().err


def test_where_no_cluster_answers_there_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN / "perceiver", "submit", "--address", f"http://127.0.0.1:{free_port()}",
         "--", "train", "digits"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "ray start --head" in line
