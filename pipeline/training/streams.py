"""Trainings on recordings that are read as streams, with the latents carried from part to part."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.training.objectives.carried import Carried
from pipeline.training.rank_info import RankInfo
from shards import ShardReader, ShardSet
from shards.lanes import LaneOrder, Lanes
from shards.recordings import Recordings

MOST_IDLE = 0.25
"""The share of an epoch's rows without a part above which the user is told."""
LATENTS, WAITING = "latents", "waiting"
"""The names of the tensors that a checkpoint within an epoch has of `CarriedLatents`."""


def training_lanes(config: Config) -> Lanes | None:
    """Return the lanes of an optimizer step, over all ranks; None without `training.stream`."""
    training = config.training
    if training.stream is None:
        return None
    parts = training.stream.parts_per_step
    return Lanes(training.batch_size // parts, parts, training.gradient_accumulation_steps)


def stream_steps(lanes: Lanes, shard_set: ShardSet) -> int:
    """Return the number of optimizer steps in an epoch of streams.

    Every part is read once. At the end of an epoch, some lanes have nothing left to read.

    Raises:
        UserError: There are fewer recordings than lanes.
        ShardError: The training split has no streams, as for `Recordings.of`.
    """
    recordings = Recordings.of(ShardReader(shard_set, "train"))
    if len(recordings.firsts) < lanes.count:
        raise UserError(
            f"training.batch_size / training.stream.parts_per_step is {lanes.count} recordings at "
            f"once, but the shard set has only {len(recordings.firsts)} for training; lower "
            "training.batch_size"
        )
    return LaneOrder(recordings, None, lanes).num_steps


def idle_notes(lanes: Lanes, recordings: Recordings) -> list[str]:
    """Return a line for the user if many rows of an epoch have nothing to read; else nothing.

    Args:
        lanes: The lanes of a step, over all ranks.
        recordings: The recordings of the training split.
    """
    positions = LaneOrder(recordings, None, lanes).num_samples
    idle = 1 - recordings.num_samples / max(1, positions)
    if idle <= MOST_IDLE:
        return []
    return [
        f"training.stream: {idle:.0%} of the rows of an epoch have nothing to read, because the "
        f"longest of {len(recordings.firsts)} files has {int(recordings.lengths.max())} parts and "
        f"{lanes.count} files are read at once; lower training.batch_size, or split long files"
    ]


def rows_of(found: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return what is known of the rows of a batch, bool `[rows]`, on a device."""
    return torch.from_numpy(found).to(device)


class CarriedLatents:
    """What this rank's lanes carry from step to step of an epoch.

    Args:
        lanes: The lanes of a step, over all ranks.
        rank_info: This process among all ranks.

    Attributes:
        groups: What the rows of each micro-batch of a step carry.
    """

    def __init__(self, lanes: Lanes, rank_info: RankInfo) -> None:
        self._lanes = lanes
        self._rank_info = rank_info
        self._shape = (lanes.groups, rank_info.world_size, -1)
        self.begin()

    def begin(self) -> None:
        """Start every lane from the learned latents: an epoch begins, or a step was left out."""
        self.groups = [Carried()] * self._lanes.groups

    def gather(self) -> dict[str, torch.Tensor] | None:
        """Return what all lanes carry, on the CPU. All ranks must call this (a collective).

        Returns:
            `latents`, float32 `[lanes, num_latents, latent_dim]`, and `waiting`, bool `[lanes]`, as
            in `Carried`; None if nothing is carried.
        """
        tensors = {}
        for name in (LATENTS, WAITING):
            found = [getattr(carried, name) for carried in self.groups]
            if any(tensor is None for tensor in found):
                return None
            own = torch.stack(found)
            whole = [torch.empty_like(own) for _ in range(self._rank_info.world_size)]
            dist.all_gather(whole, own)
            tensors[name] = torch.stack(whole, dim=1).flatten(0, 2).cpu()
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor] | None, where: str) -> None:
        """Take up what `gather` returned, at any number of ranks.

        Args:
            tensors: The tensors; None carries nothing.
            where: What errors call the checkpoint.

        Raises:
            UserError: The tensors are not those of these lanes.
        """
        if tensors is None:
            return self.begin()
        count = self._lanes.count
        latents, waiting = (tensors.get(name) for name in (LATENTS, WAITING))
        if (
            tensors.keys() != {LATENTS, WAITING}
            or latents is None
            or waiting is None
            or latents.ndim != 3
            or waiting.dtype != torch.bool
            or not len(latents) == len(waiting) == count
        ):
            raise UserError(
                f"{where}: does not hold the latents of {count} lanes; this checkpoint cannot be "
                "used"
            )
        rank, device = self._rank_info.rank, self._rank_info.device
        own_latents = latents.unflatten(0, self._shape)[:, rank].to(device)
        own_waiting = waiting.unflatten(0, self._shape)[:, rank].to(device)
        self.groups = [*map(Carried, own_latents, own_waiting)]
        return None
