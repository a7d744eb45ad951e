"""A batch of samples as tensors, and the data sets that make batches."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from shards.batch_memory import BatchMemory
from shards.collate import Fields, collate
from shards.epoch import PADDING, EpochPlan
from shards.errors import CorruptSampleError, ShardError
from shards.raw_sample import RawSample
from shards.reader import ShardReader

_MAX_TRIED = 100

Decode: TypeAlias = Callable[[RawSample], np.ndarray | Fields]
"""Turns a sample into arrays. A single array without a name becomes the field "inputs"."""


@dataclass(frozen=True)
class ShardBatch:
    """One rank's part of a global batch.

    Attributes:
        fields: Maps a name to a tensor [batch, ...]. Missing samples and the rest of shorter
            samples are zeros.
        lengths: Maps a name to int64 [batch], the length of the first axis of each sample's array.
        targets: The class numbers, int64 [batch], -1 for a sample without a class.
        weights: float32 [batch]. Padding and samples that could not be read have 0, others 1.
        numbers: The samples' numbers within the split, int64 [batch]; `PADDING` for empty rows.
        bad: (source, reason) of each sample that could not be read.
        samples: The samples of the epoch that all ranks together have read, with this batch.
    """

    fields: dict[str, torch.Tensor]
    lengths: dict[str, torch.Tensor]
    targets: torch.Tensor
    weights: torch.Tensor
    numbers: torch.Tensor
    bad: tuple[tuple[str, str], ...]
    samples: int

    def pin_memory(self) -> "ShardBatch":
        """Copy this batch into page-locked memory. torch's DataLoader calls this."""
        return replace(
            self,
            fields={name: field.pin_memory() for name, field in self.fields.items()},
            lengths={name: length.pin_memory() for name, length in self.lengths.items()},
            targets=self.targets.pin_memory(),
            weights=self.weights.pin_memory(),
            numbers=self.numbers.pin_memory(),
        )


@dataclass(frozen=True)
class Step:
    """A worker's task: sample numbers, int64 [batch], and the value of `ShardBatch.samples`."""

    numbers: np.ndarray
    samples: int
    whole_shards: bool


MadeElsewhere: TypeAlias = Callable[
    [Callable[[Step], ShardBatch], Iterator[Step]], Iterator[ShardBatch]
]
"""Makes the batches of steps in other processes, and yields them in the order of the steps."""


class BatchMaker(Dataset[ShardBatch]):
    """Make batches. As a data set, it does so in the workers of a DataLoader.

    Args:
        reader: The reader of the split.
        decode: Turns a sample into arrays.
        pad_to: The lengths to pad to, as for `collate`.
        skip_bad: If true, samples that cannot be decoded are listed in the batch; else they raise.
        skip_corrupt: The same for samples that cannot be read.
    """

    def __init__(
        self,
        reader: ShardReader,
        decode: Decode,
        pad_to: Mapping[str, int],
        skip_bad: bool,
        skip_corrupt: bool,
    ) -> None:
        self.reader = reader
        self._decode = decode
        self._pad_to = pad_to
        self._skip_bad = skip_bad
        self._skip_corrupt = skip_corrupt
        self._blank: Fields | None = None
        self._memory = BatchMemory()

    def __getitem__(self, step: Step) -> ShardBatch:
        if step.whole_shards:
            real = step.numbers[step.numbers != PADDING]
            self.reader.read_ahead(np.unique(self.reader.shards_of(real)).tolist(), ())
        return self.make(step.numbers, step.samples)

    def step(self, plan: EpochPlan, step: int, *, pinned: bool = False) -> ShardBatch:
        """Make the batch of one step. Remote shards are read ahead.

        Args:
            plan: The plan of the epoch.
            step: The index of the step in the plan.
            pinned: Whether the fields are in page-locked memory.

        Raises:
            ShardError: See `make`.
        """
        plan.read_ahead(self.reader, step)
        return self.make(plan[step], plan.samples_after(step), pinned=pinned)

    def make(self, numbers: np.ndarray, samples: int, *, pinned: bool = False) -> ShardBatch:
        """Make a batch.

        Args:
            numbers: The sample numbers, int64 [batch], with `PADDING` for empty rows.
            samples: The value of `ShardBatch.samples`.
            pinned: Whether the fields are in page-locked memory.

        Raises:
            ShardError: A sample cannot be read and must not be skipped, or the shapes or dtypes of
                samples differ.
        """
        real = np.flatnonzero(numbers != PADDING)
        bad: list[tuple[str, str]] = []
        arrays: list[Fields | None] = [None] * len(numbers)
        targets = np.full(len(numbers), -1, np.int64)
        weights = np.zeros(len(numbers), np.float32)
        for row, sample in zip(real.tolist(), self._read(numbers[real], bad), strict=True):
            arrays[row] = None if sample is None else self._decoded(sample, bad)
            if sample is not None and arrays[row] is not None:
                targets[row] = -1 if sample.target is None else sample.target
                weights[row] = 1.0
        is_blank = not weights.any()
        if is_blank:
            arrays[0] = self._blank_fields()
        tensors: dict[str, torch.Tensor] = {}

        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            tensors[name], array = self._memory.tensor(name, shape, dtype, pinned)
            return array

        lengths = collate(arrays, self._pad_to, allocate)
        return ShardBatch(
            tensors,
            {name: torch.from_numpy(own * (not is_blank)) for name, own in lengths.items()},
            torch.from_numpy(targets),
            torch.from_numpy(weights),
            torch.from_numpy(numbers),
            tuple(bad),
            samples,
        )

    def _read(self, numbers: np.ndarray, bad: list[tuple[str, str]]) -> list[RawSample | None]:
        try:
            return [*self.reader.read_many(numbers)]
        except ShardError:
            if not self._skip_corrupt:
                raise
        samples: list[RawSample | None] = []
        for number in numbers.tolist():
            try:
                samples.append(self.reader.read(number))
            except ShardError as error:
                source = error.source_uri if isinstance(error, CorruptSampleError) else ""
                source = source or f"sample {number} of split {self.reader.split}"
                bad.append((source, str(error)))
                samples.append(None)
        return samples

    def _decoded(self, sample: RawSample, bad: list[tuple[str, str]]) -> Fields | None:
        try:
            decoded = self._decode(sample)
        except Exception as error:  # a user's decoder may raise anything
            reason = " ".join(f"{error}".split()) or type(error).__name__
            if not self._skip_bad:
                raise ShardError(f"{sample.source_uri}: cannot be decoded ({reason})") from error
            bad.append((sample.source_uri, reason))
            return None
        return {"inputs": decoded} if isinstance(decoded, np.ndarray) else decoded

    def _blank_fields(self) -> Fields:
        """Return zeros with the shapes of a sample, so that an empty batch has every field.

        The result is empty if none of the first `_MAX_TRIED` samples can be decoded.
        """
        if self._blank is None:
            self._blank = {}
            for number in range(min(_MAX_TRIED, len(self.reader))):
                samples = self._read(np.array([number]), [])
                decoded = None if samples[0] is None else self._decoded(samples[0], [])
                if decoded:
                    self._blank = {name: np.zeros_like(array) for name, array in decoded.items()}
                    break
        return self._blank


class PlanSampler:
    """Yield the steps of a plan for workers. This process reads ahead for them.

    Attributes:
        plan: The plan of the next iteration.
    """

    def __init__(self, reader: ShardReader, plan: EpochPlan) -> None:
        self.plan = plan
        self._reader = reader

    def __iter__(self) -> Iterator[Step]:
        for number, step in enumerate(steps_of(self.plan)):
            self.plan.read_ahead(self._reader, number)
            yield step


def steps_of(plan: EpochPlan) -> Iterator[Step]:
    """Yield the steps of a plan, for processes that make its batches."""
    whole_shards = plan.order.window is not None
    for step in range(len(plan)):
        yield Step(plan[step], plan.samples_after(step), whole_shards)


class BatchStream(IterableDataset[ShardBatch]):
    """A rank's batches as a stream. A DataLoader with any number of workers keeps their order."""

    def __init__(self, maker: BatchMaker, plan: EpochPlan) -> None:
        self._maker = maker
        self._plan = plan

    def __iter__(self) -> Iterator[ShardBatch]:
        worker = get_worker_info()
        first, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(first, len(self._plan), num_workers):
            yield self._maker.step(self._plan, step)


class BatchList(Dataset[ShardBatch]):
    """A rank's batches by their step in the plan."""

    def __init__(self, maker: BatchMaker, plan: EpochPlan) -> None:
        self._maker = maker
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, step: int) -> ShardBatch:
        if not 0 <= step < len(self):
            raise IndexError(f"batch {step} of {len(self)}")
        return self._maker.step(self._plan, step)
