"""Start our own Ray session, or join a running cluster."""

import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster.code_paths import refuse_hidden, root_to_add, working_directory_for_workers
from cluster.errors import ClusterError
from cluster.interrupts import Terminated, defer_sigint, restore_signal_handlers
from shards.redaction import redacted

# Ray sets this variable for the entry point of a job. The job then uses the job's cluster.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# Ray names this variable for seconds, but it counts attempts.
_CONNECTION_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"
_FOLDER_PREFIX = "perceiver-ray-"
_LONGEST_TEMPORARY = 8
_REMOVING_SECONDS = 10.0
_OF_OTHER_CLUSTERS = ("RAY_ADDRESS", "RAY_AUTH_MODE")
# One token for the whole process, because Ray caches the first one that it sees.
_TOKEN = secrets.token_hex(32)


def in_ray_job() -> bool:
    """Return whether this process is the entry point of `ray job submit`."""
    return JOB_VARIABLE in os.environ


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect this process to Ray, and restore its previous state at the end.

    An existing connection of this process is used and stays open.

    Args:
        address: The address of a running cluster. None starts Ray on this machine, on loopback,
            for this process only; within a Ray job, it joins the job's cluster.

    Raises:
        ClusterError: No cluster answers at `address` for 40 s.
    """
    if _is_connected():
        yield
        return
    if in_ray_job():
        refuse_hidden(Path.cwd(), "the job's working directory")
        address = address or "auto"
    if address is None:
        with _own_session():
            yield
        return
    import ray

    try:
        with _one_attempt(), restore_signal_handlers(), working_directory_for_workers():
            ray.init(address=address, log_to_driver=True)
    except Exception as error:  # Ray raises many kinds of errors here
        reason = redacted(" ".join(str(error).split()))[:200]
        raise ClusterError(
            f"cluster.address={address}: no Ray cluster answers there ({reason}); "
            "start one with 'ray start --head', or leave cluster.address out"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _one_attempt() -> Iterator[None]:
    """Let Ray try to connect once, for 40 s. By default it tries 20 times, for 13 minutes."""
    unset = _CONNECTION_ATTEMPTS not in os.environ
    os.environ.setdefault(_CONNECTION_ATTEMPTS, "1")
    try:
        yield
    finally:
        if unset:
            os.environ.pop(_CONNECTION_ATTEMPTS, None)


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@contextlib.contextmanager
def _own_session() -> Iterator[None]:
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-", dir=_temporary()))
    dashboard_port = _free_port()
    paths = [str(root) if (root := root_to_add()) else "", os.environ.get("PYTHONPATH", "")]
    ours = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # The node's address is then 127.0.0.1, and Ray's servers listen only there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Without our own token, Ray would write one into the home folder.
        "RAY_AUTH_TOKEN": _TOKEN,
        # Ray Train asks at this address whether a stopped trial's CPUs are free again. Without it,
        # Ray searches all processes for its servers, and fails if another cluster also runs.
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
        # Nobody drains the only machine of a session, so Ray Train starts no process for each
        # launch that would wait for that.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    outer = {name: os.environ.pop(name, None) for name in (*ours, *_OF_OTHER_CLUSTERS)}
    os.environ.update(ours)
    try:
        _start(folder, dashboard_port)
        yield
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        for name in (*ours, *_OF_OTHER_CLUSTERS):
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in outer.items() if value is not None})
        _remove_folder(folder)


def _remove_folder(folder: Path) -> None:
    """Remove a session's folder, to which Ray's agents may write for a moment after its end."""
    end = time.monotonic() + _REMOVING_SECONDS
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > end:
            return
        time.sleep(0.05)


def _start(folder: Path, dashboard_port: int) -> None:
    import ray  # importing it reads RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER

    try:
        # An interrupt during Ray's start can make it wait forever.
        # The workers start in this folder and import from it.
        with defer_sigint(), restore_signal_handlers(), contextlib.chdir(folder):
            ray.init(
                address="local",
                log_to_driver=True,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                dashboard_port=dashboard_port,
                _temp_dir=str(folder),
            )
    except SystemExit:  # Ray raises this on SIGTERM
        raise Terminated() from None


def _temporary() -> str:
    """Return the system's folder for temporary files, or /tmp if its path is too long.

    A socket's path has at most 107 bytes, and Ray's own names take up to 99 of them.
    """
    system = tempfile.gettempdir()
    return system if len(system) <= _LONGEST_TEMPORARY else "/tmp"


def _remove_leftovers() -> None:
    """Remove the folders of sessions whose process was killed before it could remove them."""
    for folder in Path(_temporary()).glob(f"{_FOLDER_PREFIX}*"):
        owner = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
