"""A training as a user starts it, which may be hit and started again, and what it leaves."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

COMMAND = [sys.executable, "-m", "pipeline"]
WORKERS = 2
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
        "log_steps": 3,
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

    def lines(self) -> list[str]:
        """Return what the command has printed."""
        return self._log.read_text(errors="replace").strip().splitlines()

    def last_line(self) -> str:
        """Return the last line that the command has printed."""
        return next(reversed(self.lines()), "")

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


def differ(one: Path, other: Path) -> float:
    """Return the largest difference between the weights of two trainings; 0 if no bit differs."""
    first, second = _weights(one), _weights(other)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def _weights(run: Path) -> dict[str, Any]:
    from pipeline.training.checkpoints import last_checkpoint

    last = last_checkpoint(run / "train" / "checkpoints")
    assert last is not None
    return dict(last.load_model())


def metrics_that_differ(one: Path, other: Path) -> list[str]:
    """Return a line for each metric whose values by step differ between two trainings.

    A step may have several values, as after a machine was lost; they must all be equal.
    """
    first, second = _histories(one), _histories(other)
    lines = []
    for name in sorted(first.keys() | second.keys()):
        a, b = first.get(name, {}), second.get(name, {})
        odd = [step for step in sorted(a.keys() | b.keys()) if a.get(step) != b.get(step)]
        if odd:
            step = odd[0]
            lines.append(f"{name}: {len(odd)} steps, first {step}: {a.get(step)}, {b.get(step)}")
    return lines


def _histories(run: Path) -> dict[str, dict[int, set[float]]]:
    from mlflow.tracking import MlflowClient

    from pipeline.config.sqlite_uri import sqlite_uri
    from pipeline.training.step_figures import MEASURED

    record = json.loads((run / "stages" / "train.json").read_text())
    client = MlflowClient(sqlite_uri(run.parent / "mlflow.db"))
    run_id = record["result"]["run_id"]
    found: dict[str, dict[int, set[float]]] = {}
    for name in client.get_run(run_id).data.metrics:
        if name in MEASURED:
            continue
        values = found.setdefault(name, {})
        for metric in client.get_metric_history(run_id, name):
            values.setdefault(metric.step, set()).add(metric.value)
    return found
