"""A head that is killed and started again, with the cluster's state in Redis.

Each machine has an address on the loopback and sees only its own processes.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from nodes import wait
from trainings import difference, final_weights

from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.training.checkpoints import last_checkpoint, list_names
from pipeline.training.train import train

BIN = Path(sys.executable).parent
HEAD, SECOND = "127.0.0.2", "127.0.0.3"
ALONE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
HAS_ALL = (
    "PERCEIVER_SLOW_TESTS" in os.environ
    and shutil.which("redis-server") is not None
    and subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0
)
pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not HAS_ALL,
        reason="takes minutes; PERCEIVER_SLOW_TESTS=1 runs it, as root, with redis-server",
    ),
]
EPOCHS = 300
KEPT = """
import ray
ray.init(address="auto", namespace="kept", log_to_driver=False)
@ray.remote(num_cpus=0, resources={"second": 0.01})
class Count:
    def __init__(self): self.number = 0
    def add(self): self.number += 1; return self.number
count = Count.options(name="count", lifetime="detached", get_if_exists=True).remote()
print("count is", ray.get(count.add.remote()))
"""


class Cluster:
    """A head, a second machine that does the work, and the Redis of the head.

    Args:
        folder: The folder of their logs.
    """

    def __init__(self, folder: Path) -> None:
        # A socket's path has at most 107 bytes.
        self._temporary = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        self._log = folder / "log"
        self._environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
        }
        self._environment.pop("RAY_ADDRESS", None)
        self._port, self._dashboard, redis, self._client = free_ports(4)
        self.address = f"http://{HEAD}:{self._dashboard}"
        self._redis_address = f"127.0.0.1:{redis}"
        self._redis = self._started(
            "redis-server", "--port", str(redis), "--bind", "127.0.0.1", "--save", "",
            "--dir", str(folder),
        )  # fmt: skip
        self._head = self._started_head()
        self._second: subprocess.Popen[bytes] | None = None
        wait(self._answers)
        self._second = self._started(
            *ALONE, "ray", "start", "--block", f"--address={HEAD}:{self._port}",
            f"--node-ip-address={SECOND}", "--num-cpus=4", "--object-store-memory=150000000",
            '--resources={"second": 1}', f"--temp-dir={self._temporary / 's'}",
        )  # fmt: skip
        wait(lambda: self._runs_jobs("--entrypoint-resources", '{"second": 0.01}'))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a client of the cluster."""
        return subprocess.run(
            [BIN / command[0], *command[1:]], capture_output=True, text=True, timeout=600,
            env={**self._environment, "RAY_API_SERVER_ADDRESS": self.address},
        )  # fmt: skip

    def status(self, job_id: str) -> str:
        """Return the status of a job."""
        told = self.run("perceiver", "jobs", "status", job_id, "--json")
        assert told.returncode == 0, told.stderr
        return str(json.loads(told.stdout.splitlines()[-1])["status"])

    def kill_head(self) -> None:
        """Kill all processes of the head at once."""
        (first,) = psutil.Process(self._head.pid).children()
        first.send_signal(signal.SIGKILL)  # with the first one of a namespace, all end
        self._head.wait(30)

    def restart_head(self) -> None:
        """Start the head again, with the same address and the same Redis."""
        self._head = self._started_head()
        wait(self._answers)

    def close(self) -> None:
        for process in (self._second, self._head, self._redis):
            if process is not None:
                process.kill()
                process.wait(30)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _started_head(self) -> subprocess.Popen[bytes]:
        return self._started(
            *ALONE, "ray", "start", "--head", "--block", f"--node-ip-address={HEAD}",
            f"--port={self._port}", f"--dashboard-host={HEAD}",
            f"--dashboard-port={self._dashboard}", f"--ray-client-server-port={self._client}",
            "--num-cpus=0", "--object-store-memory=150000000",
            f"--temp-dir={self._temporary / 'h'}", RAY_REDIS_ADDRESS=self._redis_address,
        )  # fmt: skip

    def _started(self, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, env=self._environment | variables, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _answers(self) -> bool:
        # On a busy machine Ray's own time limits may end a head that starts.
        if self._head.poll() is not None:
            self._head = self._started_head()
        time.sleep(1)
        return self._runs_jobs()

    def _runs_jobs(self, *options: str) -> bool:
        return self.run("ray", "job", "submit", *options, "--", "true").returncode == 0


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind((HEAD, 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path)
    yield found
    found.close()


def test_what_runs_on_other_machines_outlives_the_head_and_what_ran_on_it_resumes(
    cluster: Cluster, make_config: Callable[..., Config], console: Console, tmp_path: Path
) -> None:
    submit, by_ray = ("perceiver", "submit", "--json"), ("ray", "job", "submit")
    made = make_config(tmp_path / "out", "name=set")
    path = tmp_path / "set.yaml"
    path.write_text(json.dumps(made.tree()))
    finished = job_id(cluster.run(*submit, "--", "preprocess", str(path)))

    def long(name: str) -> tuple[Config, Callable[[], int]]:
        """A training, which is written to a file, and what tells its last epoch."""
        config = make_config(
            tmp_path / name, f"name={name}", f"shards={made.shards_folder}",
            f"training.epochs={EPOCHS}", "cluster.num_workers=1",
        )  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config.tree()))
        checkpoints = config.folder / "train" / "checkpoints"

        def epoch() -> int:
            last = last_checkpoint(checkpoints) if list_names(checkpoints) else None
            return last.state.epoch if last else 0

        return config, epoch

    elsewhere, epoch_elsewhere = long("elsewhere")
    on_head, epoch_on_head = long("on-head")
    count = (*by_ray, "--", "python", "-c", KEPT)
    assert "count is 1" in cluster.run(*count).stdout
    cluster.run(
        *by_ray, "--no-wait", "--submission-id=elsewhere", "--entrypoint-resources",
        '{"second": 0.01}', "--", "python", "-m", "pipeline", "train",
        str(tmp_path / "elsewhere.yaml"),
    )  # fmt: skip
    train_on_head = ("--", "train", str(tmp_path / "on-head.yaml"))
    lost = job_id(cluster.run(*submit, "--detach", *train_on_head))
    wait(lambda: min(epoch_elsewhere(), epoch_on_head()) >= 2)

    cluster.kill_head()
    at_kill = epoch_elsewhere()
    wait(lambda: epoch_elsewhere() > at_kill)  # it trains while there is no head
    cluster.restart_head()
    assert epoch_elsewhere() < EPOCHS
    assert cluster.status("elsewhere") == "RUNNING"
    assert cluster.status(finished) == "SUCCEEDED"
    assert "count is 2" in cluster.run(*count).stdout
    wait(lambda: cluster.status(lost) == "FAILED")
    assert epoch_on_head() < EPOCHS
    again = cluster.run(*submit, *train_on_head)
    assert again.returncode == 0, again.stderr
    assert "resuming at epoch" in again.stderr
    wait(lambda: cluster.status("elsewhere") not in ("PENDING", "RUNNING"))
    assert cluster.status("elsewhere") == "SUCCEEDED"

    whole, _ = long("whole")
    train(whole.model_copy(update={"cluster": whole.cluster.model_copy(update={"num_workers": 0})}),
          console)  # fmt: skip
    expected = final_weights(whole)
    assert difference(final_weights(elsewhere), expected) == 0
    assert difference(final_weights(on_head), expected) == 0


def job_id(sent: subprocess.CompletedProcess[str]) -> str:
    assert sent.returncode == 0, sent.stderr
    return str(json.loads(sent.stdout.splitlines()[-1])["job_id"])
