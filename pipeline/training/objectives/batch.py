"""A batch as an objective takes it."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.inputs.collate import BatchInputs, BatchMask


@dataclass(frozen=True)
class Mix:
    """What the samples of a training batch were mixed with.

    Attributes:
        targets: The targets of the partners, as in `Batch`.
        shares: The share of each sample itself, float32 `[batch]` in [0, 1]; the rest is its
            partner's.
    """

    targets: torch.Tensor
    shares: torch.Tensor

    def blend(self, own: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
        """Return the mean of two values of each sample, `[batch]`, weighted by the shares."""
        return self.shares * own + (1 - self.shares) * partner


@dataclass(frozen=True)
class Batch:
    """Samples as a model takes them, on its device.

    Attributes:
        inputs: The inputs, from `inputs_on`.
        mask: The mask of the inputs, from `inputs_on`.
        targets: The targets. Of the kind `class`: int64 `[batch]`, with -1 where there is none. Of
            other kinds: `[batch, …]` in the dtype of the shards, padded with zeros.
        target_lengths: The length of each target's first axis before padding, int64 `[batch]`.
        weights: float32 `[batch]`: 0 for padding and for samples that could not be read, else 1.
        numbers: The number of each sample within its split or request, int64 `[batch]` on the CPU;
            negative for padding.
        seed: The seed of this step of a training, equal on all ranks; 0 in evaluations.
        mix: What the samples were mixed with; None if they were not. Only objectives whose options
            have `mixes_samples` get mixed samples.
        cache: What an objective derives from the other fields and needs again.
    """

    inputs: BatchInputs
    mask: BatchMask
    targets: torch.Tensor
    target_lengths: torch.Tensor
    weights: torch.Tensor
    numbers: torch.Tensor
    seed: int = 0
    mix: Mix | None = None
    cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def good(self) -> torch.Tensor:
        """Which samples count, bool `[batch]`."""
        return self.weights > 0

    def random(self, columns: int, *, stream: int = 0) -> torch.Tensor:
        """Return random numbers that belong to the samples, whatever batch or rank they are in.

        Args:
            columns: The count of numbers for each sample.
            stream: Another stream gives other numbers.

        Returns:
            float32 `[batch, columns]` in [0, 1), on the device of `weights`. They depend only on
            the seed, the number of the sample and the stream.
        """
        rows = torch.empty(len(self.numbers), columns)
        for row, number in zip(rows, self.numbers.tolist(), strict=True):
            text = f"{self.seed},{number},{stream}".encode()
            seed = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
            row.uniform_(generator=torch.Generator().manual_seed(seed))
        return rows.to(self.weights.device)
