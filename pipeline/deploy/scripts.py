"""Scripts for the POSIX shell: one machine without a scheduler, and Slurm."""

import math
import os
import shlex
from pathlib import Path

from pipeline.deploy.machines import Machines, refuse
from pipeline.deploy.secret_values import check_secrets_file
from pipeline.errors import UserError

START_SECONDS = 300
CHECKPOINT_SECONDS = 120
"""Slurm sends SIGTERM so long before the time limit, which saves a checkpoint."""
_IMAGE = (
    "the script runs the Python of cluster.deploy.python on the machine itself; set "
    "cluster.deploy.image to null"
)
_REDIS = "the cluster ends with its head here, and no Redis can keep it; set it to null"
_END = "PERCEIVER_CONFIGURATION"


def render_local(machines: Machines) -> dict[str, str]:
    """Return `start.sh`: Ray on this machine, the job on it, and their end.

    Raises:
        UserError: The configuration asks for what one machine cannot do.
    """
    own = "there is this machine and no other"
    refuse(
        machines,
        "local",
        {
            "image": _IMAGE,
            "redis": _REDIS,
            "spot": f"{own}; set it to false",
            "cpu_machines": f"{own}; set it to 0",
        },
    )
    check_secrets_file(machines.deploy)
    cpus = f" --num-cpus={machines.deploy.cpus}" if machines.deploy.cpus else ""
    gpus = f" --num-gpus={machines.gpus}" if machines.gpus else ""
    more = f"{cpus}{gpus}{machines.training.options}"
    start = f"""\
address=127.0.0.1
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); \
print(s.getsockname()[1])')
"$ray" start --head --block --node-ip-address="$address" --port="$port"{more} \\
    --dashboard-host=127.0.0.1 --temp-dir="$work/r" > "$work/ray.log" 2>&1 &
started=$!
"""
    return {"start.sh": _script(machines, options="", start=start, nodes="1")}


def render_slurm(machines: Machines) -> dict[str, str]:
    """Return `job.sbatch`: Ray on the machines of one allocation, the job on it, and their end.

    Raises:
        UserError: The configuration asks for what an allocation cannot do.
    """
    refuse(
        machines,
        "slurm",
        {
            "image": _IMAGE,
            "redis": _REDIS,
            "cpu_machines": "all machines of an allocation are alike; submit the work for CPUs as "
            "a script of its own, and set it to 0",
        },
    )
    if machines.config.cluster.max_workers == 0:
        raise UserError("cluster.num_workers=0 on slurm: machines train; give at least 1")
    check_secrets_file(machines.deploy)
    own = machines.deploy.slurm
    nodes = str(machines.least)
    nodes += f"-{machines.most}" if machines.most != machines.least else ""
    named = machines.config.cluster.accelerator_type
    kind = f"{named.lower()}:" if named else ""
    options = [
        f"--job-name={machines.name}-{machines.verb}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={machines.cpus}",
        f"--mem={machines.deploy.memory_gb}G",
        f"--time={math.ceil(own.hours * 60)}",
        "--output=%x-%j.log",
        "--open-mode=append",
        # A job that is preempted, or whose machine is lost, starts again and resumes.
        "--requeue",
        f"--signal=B:TERM@{CHECKPOINT_SECONDS}",
        *([f"--gpus-per-node={kind}{machines.gpus}"] if machines.gpus else []),
        *([f"--partition={own.partition}"] if own.partition else []),
        *([f"--account={own.account}"] if own.account else []),
        *own.options,
    ]
    amounts = f"--num-cpus={machines.cpus} --num-gpus={machines.gpus}{machines.training.options}"
    start = f"""\
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | cut -d ' ' -f 1)
port=$((20000 + SLURM_JOB_ID % 20000))
srun --nodes=1 --ntasks=1 --nodelist="$head" "$ray" start --head --block \\
    --node-ip-address="$address" --port="$port" {amounts} \\
    --dashboard-host=127.0.0.1 --temp-dir="/tmp/ray-$SLURM_JOB_ID" > "$work/ray.log" 2>&1 &
started=$!
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --nodes="$others" --ntasks="$others" --exclude="$head" "$ray" start --block \\
        --address="$address:$port" {amounts} >> "$work/ray.log" 2>&1 &
    started="$started $!"
fi
"""
    header = "".join(f"#SBATCH {option}\n" for option in options)
    script = _script(machines, options=header, start=start, nodes='"$SLURM_JOB_NUM_NODES"')
    return {"job.sbatch": script}


def _script(machines: Machines, *, options: str, start: str, nodes: str) -> str:
    """Return a script that starts Ray, waits for the machines, runs the job and ends Ray.

    The job gets SIGTERM and SIGINT from the script, and saves a checkpoint.

    Args:
        machines: The machines.
        options: The lines of the scheduler.
        start: The lines that start Ray in the background. They set `address`, `port` and
            `started`, the numbers of their processes.
        nodes: The number of machines to wait for, as the shell reads it.
    """
    deploy = machines.deploy
    file = ""
    if deploy.secrets_file is not None:
        path = os.path.abspath(Path(deploy.secrets_file).expanduser())  # noqa: PTH100 - no links
        file = f"set -a\n. {shlex.quote(path)}\nset +a\n"
    checks = "".join(
        f': "${{{name}:?is not set; export it before this script, or name a file in '
        'cluster.deploy.secrets_file}"\n'
        for name in deploy.secrets
    )
    return f"""\
#!/bin/sh
{options}set -eu
python={shlex.quote(machines.python)}
ray={shlex.quote(machines.ray)}
{file}{checks}umask 077
work=$(mktemp -d /tmp/pXXXXXX)
started=
job=
finish() {{
    for process in $job $started; do
        kill -TERM "$process" 2> /dev/null || true
    done
    for process in $job $started; do
        wait "$process" 2> /dev/null || true
    done
    rm -rf "$work"
}}
stop() {{
    if [ -z "$job" ]; then exit 143; fi
    kill -TERM "$job" 2> /dev/null || true
}}
trap finish EXIT
trap stop TERM INT
cat > "$work/{machines.config.name}.yaml" <<'{_END}'
{machines.config_text}{_END}
# Every process of the cluster must know this token.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$("$python" -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
unset RAY_ADDRESS
{start}waited=0
until [ "$(timeout 60 "$python" -c '
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(sum(node["Alive"] for node in ray.nodes()))
' "$address:$port" 2> "$work/wait.log" | tail -n 1)" = {nodes} ]; do
    waited=$((waited + 1))
    if [ "$waited" -ge {START_SECONDS // 5} ]; then
        echo "Ray did not start on the machines:" >&2
        cat "$work/ray.log" "$work/wait.log" >&2
        exit 1
    fi
    sleep 5
done
"$python" -P -m pipeline {machines.verb} "$work/{machines.config.name}.yaml" \\
    cluster.address="$address:$port" &
job=$!
status=0
wait "$job" || status=$?
while kill -0 "$job" 2> /dev/null; do
    status=0
    wait "$job" || status=$?
done
job=
exit "$status"
"""
