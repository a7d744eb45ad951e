"""The samples with the largest losses."""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist

from pipeline.training.objectives.answers import Shown
from shards.loader import ShardBatch


@dataclass(frozen=True, order=True)
class ShownSample:
    """One sample with its target and the model's answer, for people.

    Attributes:
        key: What orders the samples: the loss, then the number; the first of equal ones is worse.
        loss: The loss. It may be not a number.
        target: The target, as in `Shown`.
        answer: The answer, as in `Shown`.
        batch: A batch of this sample alone.
    """

    key: tuple[float, int]
    loss: float = field(compare=False)
    target: Any = field(compare=False)
    answer: Any = field(compare=False)
    batch: ShardBatch = field(compare=False)


@dataclass
class WorstSamples:
    """The samples of one rank with the largest losses. A loss that is not a number is the largest.

    Attributes:
        count: The number of samples to keep.
        heap: The samples, as `heapq` keeps them.
    """

    count: int
    heap: list[ShownSample] = field(default_factory=list)

    def update(
        self, losses: torch.Tensor, batch: ShardBatch, shown: Callable[[], Sequence[Shown]]
    ) -> None:
        """Add a batch.

        Args:
            losses: The loss of each sample, floating-point `[batch]`.
            batch: The samples. Those of weight 0 do not count.
            shown: Returns the target and the answer of each sample. Called once at most.
        """
        told: Sequence[Shown] | None = None
        rows = zip(losses.double().tolist(), batch.numbers.tolist(), batch.weights.tolist(),
                   strict=True)  # fmt: skip
        for row, (loss, number, weight) in enumerate(rows):
            if not weight:
                continue
            key = (math.inf if math.isnan(loss) else loss, -number)
            is_full = len(self.heap) >= self.count
            if is_full and (not self.count or key < self.heap[0].key):
                continue
            told = shown() if told is None else told
            sample = ShownSample(key, loss, *told[row], row_of(batch, row))
            (heapq.heapreplace if is_full else heapq.heappush)(self.heap, sample)

    def over_ranks(self) -> list[ShownSample]:
        """Return the worst samples of all ranks, the largest loss first.

        Every rank must call this.
        """
        keys = [sample.key for sample in self.heap]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, keys)
        chosen = set(sorted((key for rank in everyone for key in rank), reverse=True)[: self.count])
        # Only the chosen samples travel, for a sample may be a film.
        dist.all_gather_object(everyone, [each for each in self.heap if each.key in chosen])
        return sorted((each for rank in everyone for each in rank), reverse=True)


def row_of(batch: ShardBatch, row: int) -> ShardBatch:
    """Return a batch of one sample alone."""
    one = slice(row, row + 1)
    return replace(
        batch,
        fields={name: values[one].clone() for name, values in batch.fields.items()},
        lengths={name: values[one].clone() for name, values in batch.lengths.items()},
        targets=batch.targets[one].clone(),
        weights=batch.weights[one].clone(),
        numbers=batch.numbers[one].clone(),
        bad=(),
    )
