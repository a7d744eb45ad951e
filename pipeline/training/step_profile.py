"""`perceiver train --profile`: torch's profiler over a few steps of rank 0."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.runs.run_logger import RunLogger
from pipeline.runs.storage import make_folder, upload

FOLDER = "profile"
"""The folder of the files, in the training's folder and among the run's artifacts."""
TRACE, OPERATORS = "trace.json.gz", "operators.txt"
WAIT_STEPS, WARMUP_STEPS = 3, 2
_FIRST_STEPS = WAIT_STEPS + WARMUP_STEPS
"""The first steps are slower than others: memory is allocated, and code is compiled."""
MOST_OPERATORS = 40


def refuse_profile(steps: int, left: int) -> None:
    """Refuse a profile for which a training has too few steps left.

    Args:
        steps: The number of steps to profile.
        left: The number of steps that the training has left.

    Raises:
        UserError: There are too few.
    """
    if left < (needed := _FIRST_STEPS + steps):
        raise UserError(
            f"--profile {steps}: needs {needed} steps with those before it, and the training has "
            f"{max(0, left)} left; profile fewer, raise training.epochs, or train with --fresh"
        )


class StepProfiler:
    """Profiles some steps of this process, and writes what it found.

    Args:
        steps: The number of steps to profile.
        folder: The folder of the training.
        logger: The logger of the run, which gets the files.
        device: The device of the model.
    """

    def __init__(self, steps: int, folder: Folder, logger: RunLogger, device: torch.device) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        schedule = torch.profiler.schedule(
            wait=WAIT_STEPS, warmup=WARMUP_STEPS, active=steps, repeat=1
        )
        self._steps, self._folder, self._logger = steps, folder / FOLDER, logger
        self._sort = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
        self._left = _FIRST_STEPS + steps
        self._profile: Any = torch.profiler.profile(
            activities=activities, schedule=schedule, on_trace_ready=self._write
        )
        self._profile.start()

    def step(self) -> tuple[float, str | None]:
        """Record that a step has ended.

        Returns:
            The time in seconds that writing the profile took, and a line for the user after the
            last profiled step, else None.
        """
        if self._profile is None:
            return 0.0, None
        began = time.perf_counter()
        self._left -= 1
        self._profile.step()
        if self._left:
            return 0.0, None
        self.close()
        place = self._folder / TRACE
        note = f"profile of {self._steps} steps: {place} (for ui.perfetto.dev), and {OPERATORS}"
        return time.perf_counter() - began, note

    def close(self) -> None:
        """End the profile. If the last profiled step was not reached, nothing is written."""
        if self._profile is not None:
            profile, self._profile = self._profile, None
            profile.stop()

    def _write(self, profile: Any) -> None:
        if self._left:
            return
        make_folder(self._folder)
        table = profile.key_averages().table(sort_by=self._sort, row_limit=MOST_OPERATORS)
        with tempfile.TemporaryDirectory(prefix="perceiver-profile-") as local:
            profile.export_chrome_trace(str(Path(local) / TRACE))
            (Path(local) / OPERATORS).write_text(table + "\n", "utf-8")
            for name in (TRACE, OPERATORS):
                upload(Path(local) / name, self._folder / name)
                self._logger.artifact(self._folder / name, FOLDER)
