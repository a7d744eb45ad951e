"""Steps that run one after the other within a time, each with its answer as soon as it has one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REPORT = "report.jsonl"


@dataclass(frozen=True)
class Place:
    """Where the steps work, and at which size.

    Attributes:
        folder: The folder for all files. Each step's output is `STEP.log` in it.
        is_small: Whether a small model is trained on CPUs.
    """

    folder: Path
    is_small: bool

    @property
    def device(self) -> str:
        """The device: `cpu` or `cuda`."""
        return "cpu" if self.is_small else "cuda"


Figures = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A step.

    Attributes:
        name: Its name.
        run: A function of the place and of a function that runs a command and returns what it wrote
            to its standard output. It returns the figures of the step.
        seconds: The most that the step may take.
    """

    name: str
    run: "Callable[[Place, Run], Figures]"
    seconds: float


Run = Callable[[Sequence[str]], str]


class StepError(Exception):
    """A command of a step failed, or had no time. The text is one line."""


def run_steps(steps: Sequence[Step], place: Place, seconds: float) -> bool:
    """Run steps, and print and write down the answer of each when it has one.

    A step that fails ends none of the others.

    Args:
        steps: The steps.
        place: Where they work. `report.jsonl` there gets one line a step.
        seconds: The time for all of them.

    Returns:
        Whether all of them succeeded.
    """
    deadline, succeeded = time.monotonic() + seconds, True
    for step in steps:
        began = time.monotonic()
        limit = min(began + step.seconds, deadline)
        answer: Figures = {"step": step.name}
        try:
            if limit <= began:
                raise StepError("no time was left")
            figures = step.run(place, _runner(place.folder / f"{step.name}.log", limit))
            answer |= {"status": "ok", **figures}
        except (StepError, ValueError, KeyError, OSError) as error:
            succeeded = False
            answer |= {"status": "failed", "error": str(error) or type(error).__name__}
        answer["seconds"] = round(time.monotonic() - began, 1)
        with (place.folder / REPORT).open("a", encoding="utf-8") as report:
            report.write(json.dumps(answer) + "\n")
        print(*(f"{key}={_short(value)}" for key, value in answer.items()), flush=True)
    return succeeded


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _runner(log: Path, deadline: float) -> Run:
    """Return a function that runs a command of the checkout, until a time."""

    def run(command: Sequence[str]) -> str:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors,
                text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
            try:
                output, _ = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _end(process)
                raise StepError(f"out of time: {' '.join(command[:4])} … ({log})") from None
        with log.open("a", encoding="utf-8") as kept:
            kept.write(output)
        if process.returncode:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise StepError(f"status {process.returncode}: {last[0] if last else ''} ({log})")
        return output

    return run


def _end(process: "subprocess.Popen[str]") -> None:
    """End a command as Ctrl-C does, and kill its processes if they do not end."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
