"""The sums from which a training's loss and metrics are computed, kept on the device.

Each rank adds up its own. They are added over the ranks, and read by the host, for several steps at
once: where a figure is logged, a checkpoint is saved, or the epoch ends. So a step neither waits
for the device nor sends anything for the sake of a metric.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.training.evaluation import no_sums
from pipeline.training.objectives import Objective
from pipeline.training.rank_info import RankInfo

MOST_STEPS = 100
"""The number of steps after which the sums are read in any case, to see that they are finite."""


@dataclass(frozen=True)
class SumsOfStep:
    """The sums of one optimizer step over all ranks.

    Attributes:
        step: The step, counted from 1.
        sums: float64 on the CPU, in the order of `no_sums`.
    """

    step: int
    sums: torch.Tensor

    @property
    def loss(self) -> float:
        """The mean loss of the samples of the step."""
        return float(self.sums[0] / self.sums[-2].clamp(min=1))


class StepSums:
    """Collects the sums of steps, and reads those of several steps at once.

    Args:
        objective: What the model is trained for.
        rank_info: This process among all ranks.
        before: The sums of the epoch up to here, over all ranks; empty at its start.

    Attributes:
        loss: The loss of the last step that counts; None before the first reading.
        of_epoch: The sums of the steps of the epoch that count, over all ranks; float64 on the CPU.
    """

    def __init__(self, objective: Objective, rank_info: RankInfo, before: Sequence[float]) -> None:
        self.of_epoch = no_sums(objective)
        if before:
            self.of_epoch[:] = torch.tensor(before, dtype=torch.float64)
        self.loss: float | None = None
        self._ranks = rank_info.world_size
        self._steps: list[int] = []
        self._rows: list[torch.Tensor] = []
        self._row: torch.Tensor | None = None

    def add(self, sums: torch.Tensor) -> None:
        """Add this rank's sums of one micro-batch, float64 on the device."""
        self._row = sums if self._row is None else self._row + sums

    def end_step(self, step: int) -> None:
        """End the current step, and give it its number, counted from 1."""
        assert self._row is not None
        self._steps.append(step)
        self._rows.append(self._row)
        self._row = None

    @property
    def unread(self) -> int:
        """The number of steps that have ended since the last reading."""
        return len(self._steps)

    def read(self) -> list[SumsOfStep]:
        """Return the steps since the last reading. The caller adds those that count, by `count`.

        This waits for the device. It is a collective if there is a step: all ranks must call it.
        """
        if not self._rows:
            return []
        rows = torch.stack(self._rows)
        if self._ranks > 1:
            dist.all_reduce(rows)
        steps = [SumsOfStep(*each) for each in zip(self._steps, rows.cpu(), strict=True)]
        self._steps, self._rows = [], []
        return steps

    def count(self, found: SumsOfStep) -> None:
        """Add a step to the sums of the epoch."""
        self.of_epoch += found.sums
        self.loss = found.loss
