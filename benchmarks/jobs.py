"""One measurement in a process of its own: what is asked of it, and what it answers.

A process for each makes its peak memory its own, and lets a model that runs out of memory cost
nothing but its own row.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Task = Literal["machine", "agreement", "train", "inference", "cross-attend", "memory"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is asked.

    Attributes:
        task: `machine` describes it; `agreement` compares our logits with transformers';
            `train`, `inference` and `cross-attend` time steps; `memory` is the memory of a
            cross-attend's step.
        device: `cpu`, `cuda`, or for `machine` also `auto`.
        precision: `float32` or `bf16`, or for `machine` also `auto`.
        config: a `ClassifierConfig` as a dictionary.
        implementation, path, compiled, checkpointed: those of a `Variant`.
        paths: of `agreement`, those of ours that must agree.
        seconds: how long to repeat a step at least.
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
"""`status`: `ok` with the task's results, `out_of_memory`, `refused` with a `message` for
the user, or `failed` with `error`, one line, and `traceback`."""

Ask = Callable[[Job], Answer]


def ask_worker(job: Job) -> Answer:
    """Let a new process do the job; whatever becomes of it, there is an answer."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    # -P: a folder or file named pipeline where the user happens to be is not this package.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.worker"],
        input=json.dumps(dataclasses.asdict(job)),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode == -signal.SIGKILL:
        return {"status": "out_of_memory"}  # the kernel's way to say so
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"status": "failed", "error": f"worker exited with status {done.returncode}"}
    answer: Answer = json.loads(lines[-1])
    return answer
