"""`perceiver jobs` looks at the jobs of a cluster and stops them."""

import time
from typing import Any

from cluster.jobs import job_logs, job_status, list_jobs, stop_job
from pipeline.errors import UserError
from pipeline.runs.console import Console


def jobs(
    action: str, job_id: str | None, console: Console, *, address: str, follow: bool
) -> dict[str, Any]:
    """Run one action on the jobs of a cluster.

    Args:
        action: `list`, `status`, `logs` or `stop`.
        job_id: The ID of the job; None for `list`.
        console: The console that shows the result.
        address: The address of the cluster's dashboard.
        follow: Whether `logs` follows the log until the job ends.

    Returns:
        `jobs` of `list`, and else the fields of one job.

    Raises:
        UserError: The job is missing, or not taken.
        ClusterError: No cluster answers, or it has no such job.
    """
    if (job_id is None) != (action == "list"):
        needs = "takes no ID" if action == "list" else "needs the ID of a job"
        raise UserError(f"jobs {action} {needs}; 'perceiver jobs list' shows all")
    if follow and action != "logs":
        raise UserError(f"--follow: 'jobs {action}' shows no log; use 'perceiver jobs logs ID'")
    if job_id is None:
        found = list_jobs(address)
        columns = ("job", "status", "started", "seconds", "command")
        console.table(f"jobs of {address}", columns, [_row(job) for job in found])
        return {"jobs": found}
    if action == "logs":
        return job_logs(address, job_id, wait=follow, follow=console.say)
    job = stop_job(address, job_id) if action == "stop" else job_status(address, job_id)
    console.say(f"{job_id}: {job['status']}; {job['message']}".rstrip("; "))
    return job


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    started, ended = job["started"], job["ended"]
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)) if started else ""
    seconds = f"{(ended or time.time()) - started:.0f}" if started else ""
    return job["job_id"], job["status"], shown, seconds, job["command"]
