"""Starting a Ray session of our own, or joining the one that was named."""

import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster.code_paths import refuse_hidden, root_to_add, working_directory_for_workers
from cluster.errors import ClusterError
from cluster.interrupts import Terminated, defer_sigint, restore_signal_handlers
from shards.redaction import redacted

# Ray sets this for the entry point of a job, whose cluster is then the one to use.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# Named for seconds, but counted in attempts.
_CONNECTION_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"
_FOLDER_PREFIX = "perceiver-ray-"
_LONGEST_TEMPORARY = 8
_OF_OTHER_CLUSTERS = ("RAY_ADDRESS", "RAY_AUTH_MODE")
# One for the whole process, since Ray caches the first that it sees.
_TOKEN = secrets.token_hex(32)


def in_ray_job() -> bool:
    """Whether this process is the entry point of `ray job submit`."""
    return JOB_VARIABLE in os.environ


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect this process to Ray; leave it as it was found.

    Args:
        address: None starts Ray on this machine, on loopback, for this process alone (within a Ray
            job: joins the job's cluster). Anything else is the address of a running cluster.
            Where this process is connected already, that connection serves.

    Raises:
        ClusterError: no cluster answers at `address` for 40 s.
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
    except Exception as error:  # Ray's kinds differ by address scheme and stage
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
    """Ray tries for 40 s to connect, and by itself 20 times, which takes 13 minutes."""
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
        # The node's address is then 127.0.0.1, and Ray's servers listen on nothing else.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Without a token of ours Ray would leave one in the home folder.
        "RAY_AUTH_TOKEN": _TOKEN,
        # Ray Train asks there whether a stopped trial's CPUs are free again. Without it Ray looks
        # for its servers among all processes, and gives up where another cluster runs as well.
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
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
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, dashboard_port: int) -> None:
    import ray  # reads RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER as it is imported

    try:
        # An interrupt in the midst of Ray's start can leave it waiting for ever.
        # The workers start in this folder, and import from it.
        with defer_sigint(), restore_signal_handlers(), contextlib.chdir(folder):
            ray.init(
                address="local",
                log_to_driver=True,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                dashboard_port=dashboard_port,
                _temp_dir=str(folder),
            )
    except SystemExit:  # Ray's own way to end on SIGTERM
        raise Terminated() from None


def _temporary() -> str:
    """The system's folder for temporary files, or /tmp where its path is too long.

    A socket's path has at most 107 bytes, of which Ray's own names take up to 99.
    """
    system = tempfile.gettempdir()
    return system if len(system) <= _LONGEST_TEMPORARY else "/tmp"


def _remove_leftovers() -> None:
    """Remove the folders of sessions whose process was killed before it could."""
    for folder in Path(_temporary()).glob(f"{_FOLDER_PREFIX}*"):
        owner = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_resources(
    *, num_workers: int, cpus_per_worker: int, use_gpu: bool, what: str, mend: str
) -> None:
    """Refuse what the connected cluster can never schedule, instead of waiting for ever.

    Raises:
        ClusterError: more CPUs or GPUs are needed than the cluster has.
    """
    missing = missing_resources(
        num_workers=num_workers, cpus_per_worker=cpus_per_worker, use_gpu=use_gpu
    )
    if missing:
        raise ClusterError(f"{what} {missing}; {mend}")


def missing_resources(*, num_workers: int, cpus_per_worker: int, use_gpu: bool) -> str | None:
    """What the connected cluster lacks for these workers, in words; None where it has all."""
    import ray

    have = ray.cluster_resources()
    needs = {"CPU": num_workers * cpus_per_worker, "GPU": num_workers if use_gpu else 0}
    for kind, need in needs.items():
        if need > have.get(kind, 0):
            return (
                f"needs {need} {kind}s ({num_workers} workers x "
                f"{cpus_per_worker if kind == 'CPU' else 1}), but the cluster has "
                f"{have.get(kind, 0):g}"
            )
    return None
