"""One measurement in its own process: the job that it gets and its answer.

Each measurement has its own process, so that its peak memory is its own, and a model that runs out
of memory loses only its own row.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Task = Literal["machine", "agreement", "train", "inference", "cross-attend", "memory"]
"""The kind of a job."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The job of a worker.

    Attributes:
        task: `machine` describes the machine. `agreement` compares our logits with transformers'.
            `train`, `inference` and `cross-attend` time steps. `memory` measures the memory of a
            step of a cross-attend.
        device: `cpu` or `cuda`; for `machine`, also `auto`.
        precision: `float32`, `bf16`, `bf16_autocast` or `fp8`; for `machine`, also `auto`.
        config: A `ClassifierConfig` as a dictionary.
        implementation: As in `Variant`.
        path: As in `Variant`.
        compiled: As in `Variant`.
        checkpointed: As in `Variant`.
        paths: For `agreement`, those of our paths that must agree.
        batch_size: The number of images in a step.
        seconds: The minimum time for which a step is repeated, in seconds.
    """

    task: Task
    device: str
    precision: str
    config: dict[str, Any]
    implementation: str = "ours"
    path: str = "auto"
    compiled: bool = False
    checkpointed: float = 0.0
    paths: tuple[str, ...] = ("auto",)
    batch_size: int = 1
    seconds: float = 2.0


Answer = dict[str, Any]
"""The answer of a worker.

Its `status` is `ok` with the results of the task, `out_of_memory`, `out_of_time`, `refused` with a
`message` for the user, or `failed` with `error`, which is one line, and `traceback`.
"""

Ask = Callable[[Job], Answer]
"""A function that does a job."""


def ask_worker(job: Job, *, timeout: float | None = None) -> Answer:
    """Do the job in a new process. There is an answer whatever happens to the process.

    Args:
        job: The job.
        timeout: The seconds after which the process is killed and its answer is `out_of_time`.
    """
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    # With -P, a folder or file named pipeline in the user's current folder is not imported.
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "benchmarks.worker"],
            input=json.dumps(dataclasses.asdict(job)),
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return {"status": "out_of_time"}
    if done.returncode == -signal.SIGKILL:
        return {"status": "out_of_memory"}  # The kernel kills a process that way.
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"status": "failed", "error": f"worker exited with status {done.returncode}"}
    answer: Answer = json.loads(lines[-1])
    return answer


def ask_until(deadline: float) -> Ask:
    """Return `ask_worker` for jobs that must be done at a time of `time.monotonic`."""

    def ask(job: Job) -> Answer:
        left = deadline - time.monotonic()
        return ask_worker(job, timeout=left) if left > 0 else {"status": "out_of_time"}

    return ask
