"""Shard samples to training batches; a sample that cannot be read is named and weighs nothing."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.collate import BatchInputs, BatchMask, JointCollator, pinned, to_device
from pipeline.media import MediaError, MediaFormat, decode_member
from shards import PADDING, ShardError, ShardReader


@dataclass(frozen=True)
class BadSample:
    """A sample of the shard set that could not be read, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step.

    Attributes:
        inputs, mask: as :func:`pipeline.collate.collate` returns them, or, of several modalities,
            :class:`~pipeline.collate.JointCollator`.
        targets: int64 ``[batch]``.
        weights: float32 ``[batch]``: 0 for padding and for samples that could not be read, else 1.
        bad: the samples that could not be read.
    """

    inputs: BatchInputs
    mask: BatchMask
    targets: torch.Tensor
    weights: torch.Tensor
    bad: tuple[BadSample, ...]

    def inputs_on(self, device: torch.device) -> tuple[BatchInputs, BatchMask]:
        """The inputs and their mask on a device."""
        return to_device(self.inputs, self.mask, device)

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU reads directly; torch's DataLoader calls this."""
        inputs, mask = pinned(self.inputs, self.mask)
        return Batch(inputs, mask, self.targets.pin_memory(), self.weights.pin_memory(), self.bad)


class BatchDataset(Dataset[Batch]):
    """Makes a :class:`Batch` of an array of sample numbers.

    Args:
        formats: by modality; a sample may lack some of several.
    """

    def __init__(self, reader: ShardReader, formats: Mapping[str, MediaFormat]) -> None:
        self.reader = reader
        self.formats = formats

    def __getitem__(self, numbers: np.ndarray) -> Batch:
        size = len(numbers)
        collator = JointCollator(self.formats, size)
        targets = np.zeros(size, np.int64)
        weights = np.zeros(size, np.float32)
        bad = []
        for row, number in enumerate(numbers):
            if number == PADDING:
                continue
            source = f"sample {number} of split {self.reader.split}"
            try:
                sample = self.reader.read(int(number))
                source = sample.source_uri
                collator.put(row, self._arrays(sample.members))
            except (ShardError, MediaError, ValueError, KeyError) as error:
                bad.append(BadSample(source, " ".join(str(error).split())))
                continue
            targets[row] = -1 if sample.target is None else sample.target
            weights[row] = 1.0
        inputs, masks = collator.finish()
        name = next(iter(self.formats))
        alone = len(self.formats) == 1
        return Batch(
            inputs[name] if alone else inputs,
            masks.get(name) if alone else masks,
            torch.from_numpy(targets),
            torch.from_numpy(weights),
            tuple(bad),
        )

    def _arrays(self, members: Mapping[str, memoryview]) -> dict[str, np.ndarray]:
        """What a sample has of each modality. Raises KeyError where it has none."""
        there = {name: fmt for name, fmt in self.formats.items() if fmt.member in members}
        if not there:
            wanted = " or ".join(fmt.member for fmt in self.formats.values())
            raise KeyError(f"has {', '.join(members)}, and no {wanted}")
        return {name: decode_member(members[fmt.member], fmt) for name, fmt in there.items()}


class _Numbers:
    """A sampler over precomputed batches of sample numbers."""

    def __init__(self, batches: Iterable[np.ndarray]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.batches)


def load_batches(
    reader: ShardReader,
    formats: Mapping[str, MediaFormat],
    numbers: Iterable[np.ndarray],
    *,
    num_workers: int,
    pin_memory: bool,
) -> Iterable[Batch]:
    """Batches in the order of ``numbers``, read ahead by ``num_workers`` processes."""
    return DataLoader(
        BatchDataset(reader, formats),
        sampler=_Numbers(numbers),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # Ray's workers hold threads and sockets that a forked child must not inherit.
        multiprocessing_context="spawn" if num_workers else None,
    )
