"""Further machines of a Ray cluster. No two of them see a common folder."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

MACHINE = """
import json, os, sys, tempfile, time
folder = tempfile.mkdtemp(prefix="n", dir="/tmp")
os.environ |= {"TMPDIR": folder, "HOME": folder, "PERCEIVER_CACHE": folder + "/cache",
               "XDG_STATE_HOME": folder + "/state"}
from ray._private.node import Node
from ray._private.parameter import RayParams

# As `ray.cluster_utils.Cluster` does; `ray start` joins no cluster that listens only on loopback.
Node(
    RayParams(
        gcs_address=sys.argv[1], node_ip_address="127.0.0.1", node_manager_port=0,
        min_worker_port=0, max_worker_port=0, include_log_monitor=False, temp_dir=folder,
        dashboard_agent_listen_port=None, object_store_memory=150 << 20,
        **json.loads(sys.argv[2]),
    ),
    head=False, shutdown_at_exit=True, spawn_reaper=False,
)  # at SIGTERM it ends its processes
time.sleep(3600)
"""
# The code lies elsewhere. Nothing else of a machine is outside these folders.
HIDE = 'mount -t tmpfs none /tmp && mount -t tmpfs none /dev/shm && exec "$0" "$@"'


def _namespace() -> list[str]:
    """The start of a command that hides the folders of this machine; empty if that is forbidden.

    Without it, each machine still has its own folders for everything that it writes.
    """
    for options in ("-m", "-Urm"):
        command = ["unshare", options, "sh", "-c", HIDE]
        with contextlib.suppress(OSError):
            if not subprocess.run([*command, sys.executable, "-c", "import ray"]).returncode:
                return command
    return []


class Nodes:
    """Further machines, each a raylet with its own folders. A name is also a resource of it.

    Args:
        log: The file that takes what they print.
    """

    def __init__(self, log: Path) -> None:
        import ray

        self._address = ray.get_runtime_context().gcs_address
        self._log, self._command = log, _namespace()
        self._nodes: dict[str, psutil.Process] = {}

    @property
    def are_hidden(self) -> bool:
        """Whether the folders of this machine are hidden from the others."""
        return bool(self._command)

    def add(
        self, name: str, *, num_cpus: int = 1, num_gpus: int = 0,
        labels: dict[str, str] | None = None, resources: dict[str, float] | None = None,
    ) -> None:  # fmt: skip
        """Start a machine. `wait_for` waits until it is there."""
        what = {
            "num_cpus": num_cpus, "num_gpus": num_gpus, "labels": labels or {},
            "resources": {name: 1, **(resources or {})},
        }  # fmt: skip
        python = [sys.executable, "-c", MACHINE, self._address, json.dumps(what)]
        with self._log.open("a") as log:
            started = subprocess.Popen(
                [*self._command, *python], stdout=log, stderr=log, start_new_session=True
            )
        self._nodes[name] = psutil.Process(started.pid)

    def wait_for(self, *names: str) -> None:
        """Wait until machines are there."""
        import ray

        wait(lambda: set(names) <= ray.cluster_resources().keys())

    def lose(self, name: str) -> None:
        """Lose a machine at once, with all that runs there."""
        node = self._nodes.pop(name)
        there = [*node.children(recursive=True), node] if node.is_running() else []
        for process in there:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait(30)

    def close(self) -> None:
        """Lose all machines, and wait until Ray has noticed."""
        import ray

        names = {*self._nodes}
        for node in self._nodes.values():
            with contextlib.suppress(psutil.NoSuchProcess):  # it could not join
                node.terminate()  # its processes end with it
        psutil.wait_procs(self._nodes.values(), 20)
        for name in names:
            self.lose(name)
        wait(lambda: not names & ray.cluster_resources().keys())


def on_each(names: tuple[str, ...], function: Callable[[], object]) -> list[object]:
    """Return what a function returns on each machine."""
    import ray

    task = ray.remote(function)
    return ray.get([task.options(num_cpus=0, resources={name: 0.01}).remote() for name in names])


def wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)
