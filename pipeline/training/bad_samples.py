"""The samples that cannot be read: which they are, and whether there are too many."""

from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.runs.records import write_json
from pipeline.training.rank_info import RankInfo
from shards.loader import ShardBatch


@dataclass
class BadSamples:
    """The samples that this rank could not read.

    Attributes:
        rank_info: This process among all ranks.
        folder: The folder for the list of all ranks' bad samples, `bad_samples.json`.
        max_fraction: The largest share of a split's samples that may be bad.
        reasons: Why each could not be read, by its source.
    """

    rank_info: RankInfo
    folder: Folder
    max_fraction: float
    reasons: dict[str, str] = field(default_factory=dict)

    def note(self, batch: ShardBatch) -> None:
        """Add the bad samples of a batch."""
        for source, reason in batch.bad:
            self.reasons.setdefault(source, reason)

    def check(self, split: str, bad: float, total: float) -> None:
        """Report the samples that could not be read, and fail if there are too many.

        This is a collective if there are any: all ranks must call it with the same numbers.

        Args:
            split: The split.
            bad: The number of its bad samples, over all ranks.
            total: The number of its samples.

        Raises:
            UserError: There are too many.
        """
        if bad == 0:
            return
        everyone: list[Any] = [None] * self.rank_info.world_size
        dist.all_gather_object(everyone, list(self.reasons.items()))
        named = sorted({bad for rank in everyone for bad in rank})
        if self.rank_info.rank == 0:
            write_json(self.folder / "bad_samples.json", named)
        if bad / total > self.max_fraction:
            some = "; ".join(f"{source}: {reason}" for source, reason in named[:3])
            raise UserError(
                f"{bad:g} of {total:g} samples of split {split!r} cannot be read, more than "
                f"data.max_bad_fraction={self.max_fraction:g}: {some}"
            )
