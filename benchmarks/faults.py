"""Trainings on real processes that are hit by faults, beside one that is left alone.

    python -m benchmarks.faults --folder FOLDER [--faults term-command,term-worker,kill-worker,…]

Every fault hits one training at a random moment, the same command goes on, and at the end the
weights are compared with those of the undisturbed training, bit by bit. `elastic` needs no bits:
it adds and kills raylets of a cluster under a training with a range of workers.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

COMMAND = [sys.executable, "-m", "pipeline"]
STEPS_PER_EPOCH, WORKERS = 7, 2
WAIT_SECONDS = 600.0
CONFIG = {
    "name": "whole",
    "model": {
        "adapter": {"kind": "conv", "num_channels": 8},
        "positions": {"num_bands": 8},
        "encoder": {
            "num_latents": 8,
            "latent_dim": 32,
            "num_blocks": 1,
            "num_cross_attends": 1,
            "num_self_attends": 1,
            "num_cross_heads": 4,
            "num_self_heads": 4,
            "cross_channels": 32,
        },
    },
    "training": {
        "epochs": 40,
        "batch_size": 32,
        "checkpoint_steps": 5,
        "schedule": {"warmup_epochs": 0},
        "augment": {"shift_pixels": 2, "rotate_degrees": 10},
    },
    "cluster": {"num_workers": WORKERS, "max_failures": 0},
    "tracking": {"system_metrics": False},
}


class Training:
    """The command of one training, which is started as often as it is hit.

    Args:
        folder: The folder of the benchmark.
        name: The name of the run.
        overrides: Overrides of the configuration.
    """

    def __init__(self, folder: Path, name: str, *overrides: str) -> None:
        self.run = folder / "runs" / name
        self._arguments = [str(folder / "config.json"), f"name={name}", *overrides]
        self._log = folder / f"{name}.log"
        self._read = 0

    def start(self) -> psutil.Popen:
        """Start the command."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self._log.open("ab") as log:
            return psutil.Popen(
                [*COMMAND, "train", *self._arguments], stdout=log, stderr=log, env=environment
            )

    def last_step(self) -> int:
        """Return the step of the last checkpoint; 0 if there is none."""
        found = self.run.glob("train/checkpoints/step-*/state.json")
        return max((int(path.parent.name[5:]) for path in found), default=0)

    def last_line(self) -> str:
        """Return the last line that the command has printed."""
        return self._log.read_text(errors="replace").strip().splitlines()[-1]

    def unread(self) -> str:
        """Return what the command has printed since the text that was last found was returned."""
        text = self._log.read_text(errors="replace")
        new = text[self._read :]
        if " workers train " in new:
            self._read = len(text)
        return new

    def wait_for_step(self, process: psutil.Popen, step: int) -> bool:
        """Return whether the training has a checkpoint of a later step before it ends."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if self.last_step() > step:
                return True
            time.sleep(0.05)
        return False


def of_name(process: psutil.Popen, name: str) -> psutil.Process:
    """Return a process below the command whose name or title begins so."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if name in child.name() or name in " ".join(child.cmdline()[:1]):
                found.append(child)
    return random.choice(found)


HITS: dict[str, Callable[[psutil.Popen], Any]] = {
    "term-command": lambda process: process.terminate(),
    "term-worker": lambda process: of_name(process, "ray::RayTrainWorker").terminate(),
    "kill-worker": lambda process: of_name(process, "ray::RayTrainWorker").kill(),
    "kill-raylet": lambda process: of_name(process, "raylet").kill(),
    "kill-command": lambda process: process.children()[0].kill(),
    "kill-all": lambda process: [each.kill() for each in process.children(recursive=True)],
}
"""What hits a training, by name. Each takes the process of the command."""


def hit(training: Training, fault: str) -> dict[str, Any]:
    """Start a training, hit it at a random moment after its next checkpoint, and wait for its end.

    Returns:
        The fault, the steps of the last checkpoints before and after it, the exit status, and the
        last line.
    """
    process = training.start()
    before = training.last_step()
    if not training.wait_for_step(process, before):
        raise SystemExit(f"{fault}: the training ended before: {training.last_line()}")
    time.sleep(random.uniform(0, 2))
    started = process.children(recursive=True)
    began = time.monotonic()
    HITS[fault](process)
    status = process.wait(WAIT_SECONDS)
    seconds = time.monotonic() - began
    for each in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    return {
        "fault": fault,
        "status": status,
        "seconds": round(seconds, 1),
        "step before": before,
        "step after": training.last_step(),
        "line": training.last_line(),
    }


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


def weights(run: Path) -> dict[str, Any]:
    """Return the weights of the last checkpoint of a training."""
    from pipeline.training.checkpoints import last_checkpoint

    last = last_checkpoint(run / "train" / "checkpoints")
    assert last is not None
    return dict(last.load_model())


def differ(one: Path, other: Path) -> float:
    """Return the largest difference between the weights of two trainings; 0 if no bit differs."""
    first, second = weights(one), weights(other)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[Path]:
    """Make the shard set, the configuration, and the undisturbed training."""
    from pipeline.demo.digits import write_digits

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "raw").is_dir():
        write_digits(folder / "raw")
    data = {
        "train": str(folder / "raw" / "test"),
        "validation": 0.15,
        "image": {"height": 28, "width": 28, "channels": 1},
        "samples_per_shard": 100,
    }
    config = {**CONFIG, "output": str(folder / "runs"), "data": data}
    (folder / "config.json").write_text(json.dumps(config))
    shards = folder / "runs" / "whole" / "shards"
    subprocess.run([*COMMAND, "preprocess", str(folder / "config.json")], check=True)
    config["shards"] = str(shards)
    (folder / "config.json").write_text(json.dumps(config))
    yield folder


def main() -> None:
    """Run the faults that are asked for, and print what became of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--faults", default=",".join(HITS), help=f"of {', '.join(HITS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args()
    random.seed(args.seed)
    epochs = f"training.epochs={args.epochs}"
    with prepared(args.folder.absolute()) as folder:
        whole = Training(folder, "whole", epochs)
        if whole.start().wait(3600):
            raise SystemExit(whole.last_line())
        if args.faults == "elastic":
            print(json.dumps({"elastic: largest difference": elastic(folder, epochs)}))
            return
        hurt = Training(folder, f"hurt-{args.seed}", epochs)
        for fault in args.faults.split(","):
            print(json.dumps(hit(hurt, fault)), flush=True)
        if hurt.start().wait(3600):
            raise SystemExit(hurt.last_line())
        print(json.dumps({"largest difference of weights": differ(hurt.run, whole.run)}))


if __name__ == "__main__":
    main()
