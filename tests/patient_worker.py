"""Workers of Ray Train that take their time, so that a test can hit them between two steps."""

import time
from pathlib import Path
from typing import Any

from pipeline.training.optimizer_step import OptimizerStep
from pipeline.training.worker import TrainTask, train_worker

SECONDS = 0.2
"""How long a step takes at least, until there is a file `FAST` in the folder of the training."""
FAST = "fast"


def patient_worker(task: TrainTask) -> dict[str, int] | None:
    """Train as a worker does, but slowly at first."""
    take = OptimizerStep.take

    def slow_take(step: OptimizerStep, *arguments: Any, **options: Any) -> Any:
        if not (Path(task.folder) / FAST).exists():
            time.sleep(SECONDS)
        return take(step, *arguments, **options)

    OptimizerStep.take = slow_take  # type: ignore[method-assign]  # of this process
    return train_worker(task)
