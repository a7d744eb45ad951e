"""Ray jobs: submit them with this environment's Python and follow their log."""

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from shards.redaction import redacted

# A cluster that has just started reports this before it can run jobs.
NOT_YET = "No available agent"
START_SECONDS = 60.0


def run_job(
    arguments: list[str],
    *,
    address: str,
    working_dir: Path,
    environment: dict[str, str],
    wait: bool,
    follow: Callable[[str], None],
) -> dict[str, Any]:
    """Submit `python ARGUMENTS` to a cluster.

    Args:
        arguments: The arguments for this environment's Python. The cluster's machines must have it
            at the same path.
        address: The address of the cluster's dashboard, `http://host:port`.
        working_dir: The folder to upload. The job runs in it. Ray accepts at most 100 MiB.
        environment: Environment variables for the job's processes.
        wait: Whether to follow the log until the job ends.
        follow: Called with each line of the log.

    Returns:
        `job_id` and `status`: "SUCCEEDED", "FAILED" or "STOPPED"; without `wait`, the current
        status.

    Raises:
        ClusterError: No cluster answers at `address`, or it refuses the job.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # These variables would override `address`.
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    try:
        client = JobSubmissionClient(address)
        job_id = _submitted(client, arguments, working_dir, environment)
    except AuthenticationError as error:
        raise ClusterError(
            f"--address {address}: the cluster refuses this client's token "
            f"({redacted(' '.join(error.message.split()))[:200]}); set RAY_AUTH_MODE=token to send "
            "the one of RAY_AUTH_TOKEN, of RAY_AUTH_TOKEN_PATH or of ~/.ray/auth_token, or start "
            "the cluster with RAY_AUTH_MODE=disabled"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = redacted(" ".join(str(error).split()))[:300]
        raise ClusterError(
            f"--address {address}: the cluster does not take the job ({reason}); start one with "
            "'ray start --head', or name another --address"
        ) from error
    follow(f"submitted {job_id} to {address}")
    if wait:
        asyncio.run(_follow(client, job_id, follow))
    return {"job_id": job_id, "status": str(client.get_job_status(job_id).value)}


def _submitted(
    client: Any, arguments: list[str], working_dir: Path, environment: dict[str, str]
) -> str:
    """Submit the job and return its id. Wait if the cluster has only just started."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return client.submit_job(
                entrypoint=shlex.join([sys.executable, *arguments]),
                runtime_env={
                    "working_dir": str(working_dir.absolute()),
                    "env_vars": environment,
                    "py_executable": sys.executable,
                },
            )
        except RuntimeError as error:
            if NOT_YET not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1)


async def _follow(client: Any, job_id: str, follow: Callable[[str], None]) -> None:
    pending = ""
    async for text in client.tail_job_logs(job_id):
        *lines, pending = (pending + text).split("\n")
        for line in lines:
            follow(line)
    if pending:
        follow(pending)
