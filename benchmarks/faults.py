"""Trainings on real processes that are hit by faults, beside one that is left alone.

    python -m benchmarks.faults --folder FOLDER [--faults term-command,term-worker,kill-worker,…]
    python -m benchmarks.faults --folder FOLDER --faults elastic

Faults hit one training at random moments, over and over, until it ends; a command that has ended is
started again. The weights and metrics are then compared with those of the undisturbed training, bit
by bit. `elastic` needs no bits: it adds and kills raylets of a cluster under a training with a
range of workers.
"""

import argparse
import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.hurt_training import (
    WAIT_SECONDS,
    Training,
    differ,
    metrics_that_differ,
    prepared,
)

WORKER = "ray::RayTrainWorker"
LEFT_SECONDS = 180.0
"""Ray's agents notice the death of their raylet within this time."""
MOST_STARTS_WITHOUT_A_STEP = 10


class NoTargetError(Exception):
    """The process that a fault hits does not run at this moment."""


def below(process: psutil.Popen, name: str) -> list[psutil.Process]:
    """Return the processes below the command whose name or title begins so."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if name in child.name() or name in " ".join(child.cmdline()[:1]):
                    found.append(child)
    if not found:
        raise NoTargetError(name)
    return found


def runs(process: psutil.Process) -> bool:
    """Return whether a process runs; one that has ended may still be in the table."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def driver(process: psutil.Popen) -> psutil.Process:
    """Return the process that trains for the command, which watches it."""
    children = process.children()
    if not children:
        raise NoTargetError("driver")
    return children[0]


HITS: dict[str, Callable[[psutil.Popen], Any]] = {
    "term-command": lambda process: process.terminate(),
    "term-worker": lambda process: random.choice(below(process, WORKER)).terminate(),
    "kill-worker": lambda process: random.choice(below(process, WORKER)).kill(),
    "kill-workers": lambda process: [each.kill() for each in below(process, WORKER)],
    "kill-raylet": lambda process: below(process, "raylet")[0].kill(),
    "kill-driver": lambda process: driver(process).kill(),
    "kill-command": lambda process: process.kill(),
}
"""What hits a training, by name. Each takes the process of the command."""


@dataclass
class Storm:
    """What has happened to a training.

    Attributes:
        training: The training.
        faults: The names of the faults.
        mean_seconds: The mean time between two faults.
        most_hits: After so many faults, the training is left alone.
        hits: How often each fault has hit.
        ends: How often the command has ended with each status.
        starts: How often the command was started.
    """

    training: Training
    faults: list[str]
    mean_seconds: float
    most_hits: int
    hits: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    starts: int = 0
    _started: list[psutil.Process] = field(default_factory=list)

    def run(self) -> None:
        """Start the command until the training is done, and hit it at random moments."""
        idle = 0
        while True:
            before = self.training.last_step()
            process = self.training.start()
            self.starts += 1
            started = self._hit_until_end(process)
            status = process.wait()
            self.ends[status] += 1
            print(
                json.dumps(
                    {
                        "status": status,
                        "steps": [before, self.training.last_step()],
                        "line": self.training.last_line()[-300:],
                    }
                ),
                flush=True,
            )
            self._started += started
            if status == 0:
                return
            idle = idle + 1 if self.training.last_step() == before else 0
            if idle >= MOST_STARTS_WITHOUT_A_STEP:
                raise SystemExit(f"no new checkpoint in {idle} starts: {self.training.last_line()}")

    def _hit_until_end(self, process: psutil.Popen) -> list[psutil.Process]:
        """Hit the command until it has ended, and return the processes that were below it."""
        started: dict[int, psutil.Process] = {}
        due = time.monotonic() + random.expovariate(1 / self.mean_seconds)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                started |= {each.pid: each for each in process.children(recursive=True)}
            if time.monotonic() >= due and self.hits.total() < self.most_hits:
                self._hit(process)
                due = time.monotonic() + random.expovariate(1 / self.mean_seconds)
            time.sleep(0.1)
        return list(started.values())

    def _hit(self, process: psutil.Popen) -> None:
        fault = random.choice(self.faults)
        try:
            HITS[fault](process)
        except (NoTargetError, psutil.NoSuchProcess):
            return  # another moment
        self.hits[fault] += 1
        print(json.dumps({"fault": fault, "step": self.training.last_step()}), flush=True)

    def left(self) -> list[str]:
        """Return the processes that still run some time after the end, and end them."""
        deadline = time.monotonic() + LEFT_SECONDS
        while any(map(runs, self._started)) and time.monotonic() < deadline:
            time.sleep(1)
        found = []
        for each in filter(runs, self._started):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(" ".join(each.cmdline())[:120])
                each.kill()
        return found


def elastic(folder: Path, epochs: str) -> float:
    """Kill a raylet under a training with a range of workers, and add one again.

    Returns:
        The largest difference of the weights from those of the undisturbed training.
    """
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    training = Training(
        folder,
        f"elastic-{time.time():.0f}",
        epochs,
        f"cluster.address={cluster.address}",
        "cluster.num_workers={min: 1, max: 3, resize_seconds: 5}",
    )
    process = training.start()
    try:
        for change in ("3 workers", "2 workers", "3 workers"):
            _wait_for_line(training, process, f"{change} train")
            print(json.dumps({"elastic": change, "step": training.last_step()}), flush=True)
            training.wait_for_step(process, training.last_step() + 10)
            if change == "2 workers":
                cluster.add_node(num_cpus=1)
            elif nodes:
                cluster.remove_node(nodes.pop(), allow_graceful=False)
                nodes.clear()
        if process.wait(3600):
            raise SystemExit(training.last_line())
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in [*process.children(recursive=True), process]:
                each.kill()
        cluster.shutdown()
    return differ(training.run, folder / "runs" / "whole")


def _wait_for_line(training: Training, process: psutil.Popen, text: str) -> None:
    """Wait until the command prints a line with this text after those that were waited for."""
    deadline = time.monotonic() + WAIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if text in training.unread():
            return
        time.sleep(0.2)
    raise SystemExit(f"no line with {text!r}: {training.last_line()}")


def main() -> None:
    """Run the faults that are asked for, and print what became of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--faults", default=",".join(HITS), help=f"of {', '.join(HITS)}; elastic")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--mean-seconds", type=float, default=60, help="between two faults")
    parser.add_argument("--most-hits", type=int, default=1000, help="then it is left alone")
    parser.add_argument("--max-failures", type=int, default=0, help="cluster.max_failures")
    args = parser.parse_args()
    random.seed(args.seed)
    epochs = f"training.epochs={args.epochs}"
    with prepared(args.folder.absolute()) as folder:
        whole = Training(folder, "whole", epochs)
        began = time.monotonic()
        if whole.start().wait(3600):
            raise SystemExit(whole.last_line())
        alone = time.monotonic() - began
        if args.faults == "elastic":
            print(json.dumps({"elastic: largest difference": elastic(folder, epochs)}))
            return
        hurt = Training(
            folder, f"hurt-{args.seed}", epochs, f"cluster.max_failures={args.max_failures}"
        )
        storm = Storm(hurt, args.faults.split(","), args.mean_seconds, args.most_hits)
        began = time.monotonic()
        storm.run()
        resumed = [line for line in hurt.lines() if "resuming at epoch" in line]
        print(
            json.dumps(
                {
                    "steps": hurt.last_step(),
                    "seconds": round(time.monotonic() - began),
                    "seconds of the undisturbed one": round(alone),
                    "faults": dict(storm.hits),
                    "starts of the command": storm.starts,
                    "ends by status": {str(key): count for key, count in storm.ends.items()},
                    "resumed": len(resumed),
                    "processes left": storm.left(),
                    "largest difference of weights": differ(hurt.run, whole.run),
                    "metrics that differ": metrics_that_differ(whole.run, hurt.run),
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
