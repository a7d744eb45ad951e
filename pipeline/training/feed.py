"""The micro-batches of a training, on the device before they are needed.

The host is ahead of a GPU: while the GPU computes one micro-batch, the next one is read, and copied
on a stream of its own. On a CPU, the copy is none, and reading takes its time.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from pipeline.config.tree import Config
from pipeline.inputs.batches import inputs_on
from pipeline.training.augmentation.samples import repeat_samples
from pipeline.training.objectives import Batch, Objective
from pipeline.training.rank_info import RankInfo
from pipeline.training.samples import batch_of
from pipeline.training.step_clock import StepClock
from shards.loader import ShardBatch


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of this rank; of streams, its parts in order.

    Attributes:
        batches: The parts as they were read, on the host.
        samples: The parts as the objective takes them, on the device, before augmentation.
        total_weight: The sum of the loss weights over all ranks, a float32 scalar on the device.
            None with one rank, or if augmentation changes the weights.
    """

    batches: list[ShardBatch]
    samples: list[Batch]
    total_weight: torch.Tensor | None


class Feed:
    """Gives the micro-batches of the rest of an epoch, step by step.

    The loss is a mean over the samples of all ranks, so a micro-batch needs the sum of their
    weights. Where augmentation does not change the weights, the ranks add up those of a whole step
    at once, and ahead of it. All micro-batches of the step are then read before its first one.

    An error in reading ahead is raised in the step that it belongs to.

    Args:
        batches: The batches of the rest of the epoch.
        config: The configuration.
        objective: What the model is trained for.
        rank_info: This process among all ranks.
        steps: The number of optimizer steps in the rest of the epoch.
        clock: It measures the wait for batches.
    """

    def __init__(
        self,
        batches: Iterator[ShardBatch],
        config: Config,
        objective: Objective,
        rank_info: RankInfo,
        steps: int,
        clock: StepClock,
    ) -> None:
        training = config.training
        self._config, self._objective, self._rank_info = config, objective, rank_info
        self._parts = training.stream.parts_per_step if training.stream else 1
        self._per_step = training.gradient_accumulation_steps
        self._steps = steps
        mixed = bool(training.augment.mixup or training.augment.cutmix)
        ranks = rank_info.world_size
        self._sums_ahead = ranks > 1 and objective.weights_are_stored(mixed=mixed)
        device = rank_info.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._batches = clock.timed(batches, self._device_works if self._stream else None)
        self._marked: Any = None
        self._ahead: _Ahead | Exception | None = None

    def step(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches of the next optimizer step.

        Raises:
            ShardError: A sample cannot be read, as of `ShardLoader`.
        """
        self.read_ahead()
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, Exception):
            raise ahead
        assert ahead is not None  # the caller asks for as many steps as it said
        if ahead.adding_up is not None:
            ahead.adding_up.wait()
        batches, samples = ahead.batches, ahead.samples
        for micro in range(self._per_step):
            if micro:
                batches = ahead.further.pop(0) if ahead.further else self._read()
                samples = self._on_device(batches)
            self._hand_over(samples)
            totals = ahead.total_weights
            yield MicroBatch(batches, samples, None if totals is None else totals[micro])

    def read_ahead(self) -> None:
        """Read what the next step begins with. Call it when the device has its work."""
        if self._ahead is None and self._steps:
            self._steps -= 1
            self._mark()
            try:
                self._ahead = self._begin()
            except Exception as error:
                self._ahead = error

    def _begin(self) -> "_Ahead":
        batches = self._read()
        if not self._sums_ahead:
            return _Ahead(batches, self._on_device(batches))
        further = [self._read() for _ in range(1, self._per_step)]
        own = torch.stack([self._weight(each) for each in (batches, *further)])
        with self._copying():
            total = own.to(self._rank_info.device, non_blocking=True)
            adding_up = dist.all_reduce(total, async_op=True)
        return _Ahead(batches, self._on_device(batches), further, list(total.unbind()), adding_up)

    def _read(self) -> list[ShardBatch]:
        return [next(self._batches) for _ in range(self._parts)]

    def _weight(self, batches: list[ShardBatch]) -> torch.Tensor:
        """Return the sum of this rank's loss weights in a micro-batch, computed on the host."""
        host = torch.device("cpu")
        views = self._config.training.augment.views
        parts = [batch_of(batch, {}, None, self._objective.target, host) for batch in batches]
        weights = [self._objective.loss_weights(repeat_samples(part, views)) for part in parts]
        return torch.stack([each.sum() for each in weights]).sum()

    def _on_device(self, batches: list[ShardBatch]) -> list[Batch]:
        objective, device = self._objective, self._rank_info.device
        samples = []
        with self._copying():
            for batch in batches:
                own = batch if self._stream is None else _pinned(batch)
                inputs, mask = inputs_on(own, self._config.data.formats, device)
                samples.append(batch_of(own, inputs, mask, objective.target, device))
        return samples

    def _copying(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _hand_over(self, samples: list[Batch]) -> None:
        """Let the device's main stream use what was copied."""
        if self._stream is not None:
            current = torch.cuda.current_stream()
            current.wait_stream(self._stream)
            for tensor in _tensors(samples):
                tensor.record_stream(current)

    def _mark(self) -> None:
        if self._stream is not None:
            self._marked = torch.cuda.Event()
            self._marked.record()

    def _device_works(self) -> bool:
        """Return whether the device still has work from before the current reading."""
        return self._marked is not None and not self._marked.query()


@dataclass
class _Ahead:
    """What has been read of a step.

    Attributes:
        batches, samples: The first micro-batch, as in `MicroBatch`.
        further: The parts of the further micro-batches that have been read, too.
        total_weights: The `total_weight` of each micro-batch; None if they are not known ahead.
        adding_up: The work of the ranks that add them up.
    """

    batches: list[ShardBatch]
    samples: list[Batch]
    further: list[list[ShardBatch]] = field(default_factory=list)
    total_weights: list[torch.Tensor] | None = None
    adding_up: Any = None


def _pinned(batch: ShardBatch) -> ShardBatch:
    """Return the batch with its small tensors in page-locked memory, too, for copies at once."""
    return replace(
        batch,
        lengths={name: length.pin_memory() for name, length in batch.lengths.items()},
        targets=batch.targets.pin_memory(),
        weights=batch.weights.pin_memory(),
    )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors on a GPU in samples, however they are nested."""
    if isinstance(value, torch.Tensor):
        if value.is_cuda:
            yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value):
        for each in fields(value):
            yield from _tensors(getattr(value, each.name))
