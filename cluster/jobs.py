"""Ray jobs: submit them, follow their log, look at them and stop them."""

import asyncio
import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.job_package import in_mib
from shards.redaction import redacted

# A cluster that has just started reports this before it can run jobs.
NOT_YET = "No available agent"
START_SECONDS = 60.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""The statuses of a job that has ended."""
STOP_SECONDS = 120
"""How long a job that is stopped may take to save a checkpoint. Ray's default is 3 s."""
_ATTEMPTS = 5
"""How often a log that breaks off is opened again."""


def run_job(
    command: Sequence[str],
    *,
    address: str,
    working_dir: Path,
    environment: dict[str, str],
    python: dict[str, Any],
    wait: bool,
    follow: Callable[[str], None],
) -> dict[str, Any]:
    """Submit a command to a cluster.

    Args:
        command: The program and its arguments.
        address: The address of the cluster's dashboard, `http://host:port`.
        working_dir: The zip archive to upload, in which the job runs. Ray accepts less than 100
            MiB.
        environment: Environment variables for the job's processes. Ray's dashboard shows them.
        python: The part of the runtime environment that chooses the Python: `py_executable`, or
            `uv` or `pip` with packages.
        wait: Whether to follow the log until the job ends.
        follow: Called with the size before the upload, with the job's ID, and with each line of
            the log.

    Returns:
        `job_id` and `status`: "SUCCEEDED", "FAILED" or "STOPPED"; without `wait`, the current
        status.

    Raises:
        ClusterError: No cluster answers at `address`, or it refuses the job.
    """
    runtime_env = {
        "working_dir": str(working_dir.absolute()),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **environment},
        **python,
    }
    with _client(address) as client:
        follow(f"sending {in_mib(working_dir.stat().st_size)} to {address}")
        job_id = _submitted(client, shlex.join(command), runtime_env)
        follow(f"submitted {job_id} to {address}")
        if wait:
            asyncio.run(_follow(client, job_id, follow))
        return {"job_id": job_id, "status": _status(client, job_id)}


def list_jobs(address: str) -> list[dict[str, Any]]:
    """Return what `job_status` returns of each job of a cluster, the newest first.

    Raises:
        ClusterError: No cluster answers at `address`.
    """
    with _client(address) as client:
        jobs = [_described(job) for job in client.list_jobs() if job.submission_id]
    return sorted(jobs, key=lambda job: job["started"] or 0, reverse=True)


def job_status(address: str, job_id: str) -> dict[str, Any]:
    """Return a job's `job_id`, `status`, `command`, `message`, and `started` and `ended`.

    The times are in seconds since 1970, or None.

    Raises:
        ClusterError: No cluster answers at `address`, or it has no such job.
    """
    with _client(address, job_id) as client:
        return _described(client.get_job_info(job_id))


def job_logs(
    address: str, job_id: str, *, wait: bool, follow: Callable[[str], None]
) -> dict[str, Any]:
    """Pass the lines of a job's log to `follow`, and return what `job_status` returns.

    Args:
        address: The address of the cluster's dashboard.
        job_id: The ID of the job.
        wait: Whether to follow the log until the job ends.
        follow: Called with each line.

    Raises:
        ClusterError: No cluster answers at `address`, or it has no such job.
    """
    with _client(address, job_id) as client:
        client.get_job_info(job_id)
        if wait:
            asyncio.run(_follow(client, job_id, follow))
        else:
            for line in client.get_job_logs(job_id).splitlines():
                follow(line.expandtabs())
        return _described(client.get_job_info(job_id))


def stop_job(address: str, job_id: str) -> dict[str, Any]:
    """Stop a job, wait until it has ended, and return what `job_status` returns.

    The job gets SIGTERM, at which a training saves a checkpoint.

    Raises:
        ClusterError: No cluster answers at `address`, it has no such job, or the job does not end.
    """
    with _client(address, job_id) as client:
        client.get_job_info(job_id)
        client.stop_job(job_id)
        deadline = time.monotonic() + STOP_SECONDS + 30
        while (status := _status(client, job_id)) not in ENDED:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{job_id}: it is asked to stop, and is still {status} after "
                    f"{STOP_SECONDS + 30} s; look at its log"
                )
            time.sleep(0.5)
        return _described(client.get_job_info(job_id))


@contextlib.contextmanager
def _client(address: str, job_id: str | None = None) -> Iterator[Any]:
    """Yield a client of a cluster's jobs. Errors of Ray become one line each."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # These variables would override `address`.
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    try:
        yield JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ClusterError(
            f"--address {address}: the cluster refuses this client's token "
            f"({_one_line(error.message)[:200]}); set RAY_AUTH_MODE=token to send the one of "
            "RAY_AUTH_TOKEN, of RAY_AUTH_TOKEN_PATH or of ~/.ray/auth_token, or start the cluster "
            "with RAY_AUTH_MODE=disabled"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        if isinstance(error, ClusterError):
            raise
        reason = _one_line(str(error))[:300]
        if job_id is not None and ("404" in reason or "does not exist" in reason):
            raise ClusterError(
                f"{job_id}: {address} has no such job; 'perceiver jobs list' shows all"
            ) from error
        raise ClusterError(
            f"--address {address}: the cluster does not take the request ({reason}); start one "
            "with 'ray start --head', or name another --address"
        ) from error


def _one_line(text: str) -> str:
    return redacted(" ".join(text.split()))


def _status(client: Any, job_id: str) -> str:
    return str(client.get_job_status(job_id).value)


def _described(job: Any) -> dict[str, Any]:
    """Return the fields of a job that people ask for; Ray's times are in milliseconds."""
    return {
        "job_id": job.submission_id,
        "status": str(getattr(job.status, "value", job.status)),
        "command": redacted(job.entrypoint or ""),
        "message": _one_line(job.message or ""),
        "started": job.start_time and job.start_time / 1000,
        "ended": job.end_time and job.end_time / 1000,
    }


def _submitted(client: Any, entrypoint: str, runtime_env: dict[str, Any]) -> str:
    """Submit the job and return its id. Wait if the cluster has only just started."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, runtime_env=dict(runtime_env)))
        except RuntimeError as error:
            if NOT_YET not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1)


async def _follow(client: Any, job_id: str, follow: Callable[[str], None]) -> None:
    """Pass the log's lines on until the job ends. A log that breaks off is opened again."""
    passed = 0
    for _ in range(_ATTEMPTS):
        number, pending = 0, ""
        async for text in client.tail_job_logs(job_id):
            *lines, pending = (pending + text).split("\n")
            for line in lines:
                number += 1
                if number > passed:
                    follow(line.expandtabs())
            passed = max(passed, number)
        if _status(client, job_id) in ENDED:
            if pending and number >= passed:
                follow(pending.expandtabs())
            return
        await asyncio.sleep(2)
