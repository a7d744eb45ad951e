"""Trainings on recordings that are read as streams, with the latents carried from part to part."""

import math
from dataclasses import replace

import numpy as np
import torch

from cluster.fragments import Fragment, whole
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.training.objectives.carried import Carried
from pipeline.training.rank_info import RankInfo
from pipeline.training.stored_tensors import StoredTensors
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
        self._rows = lanes.count // (lanes.groups * rank_info.world_size)
        self.begin()

    def begin(self) -> None:
        """Start every lane from the learned latents: an epoch begins, or a step was left out."""
        self.groups = [Carried()] * self._lanes.groups

    def fragments(self) -> list[Fragment]:
        """Return what this rank's lanes carry; nothing if nothing is carried.

        Of all ranks together, these are `latents`, float32 `[lanes, num_latents, latent_dim]`, and
        `waiting`, bool `[lanes]`, as in `Carried`.
        """
        found = []
        for group, carried in enumerate(self.groups):
            if carried.latents is None or carried.waiting is None:
                return []
            found += [
                self._fragment(LATENTS, carried.latents.float(), group),
                self._fragment(WAITING, carried.waiting, group),
            ]
        return found

    def _fragment(self, name: str, rows: torch.Tensor, group: int) -> Fragment:
        first = self._first_lane(group) * rows[0].numel()
        shape = (self._lanes.count, *rows.shape[1:])
        own = whole(name, rows)
        return replace(own, shape=shape, start=first, is_shared=False)

    def _first_lane(self, group: int) -> int:
        rank_info = self._rank_info
        return (group * rank_info.world_size + rank_info.rank) * self._rows

    def restore(self, tensors: StoredTensors | None, where: str) -> None:
        """Take up what a checkpoint holds, at any number of ranks. Each reads its own lanes.

        Args:
            tensors: The tensors of all lanes; None carries nothing.
            where: What errors call the checkpoint.

        Raises:
            UserError: The tensors are not those of these lanes, or cannot be read.
        """
        if tensors is None:
            return self.begin()
        count = self._lanes.count
        latents, waiting = (tensors.tensors.get(name) for name in (LATENTS, WAITING))
        if (
            tensors.names != {LATENTS, WAITING}
            or latents is None
            or waiting is None
            or len(latents.shape) != 3
            or waiting.dtype != torch.bool
            or not latents.shape[0] == waiting.shape[0] == count
        ):
            raise UserError(
                f"{where}: does not hold the latents of {count} lanes; this checkpoint cannot be "
                "used"
            )
        self.groups = [
            Carried(self._own(tensors, LATENTS, group), self._own(tensors, WAITING, group))
            for group in range(self._lanes.groups)
        ]
        return None

    def _own(self, tensors: StoredTensors, name: str, group: int) -> torch.Tensor:
        shape = tensors.tensors[name].shape[1:]
        size = math.prod(shape)
        rows = tensors.read(name, self._first_lane(group) * size, self._rows * size)
        return rows.reshape(self._rows, *shape).to(self._rank_info.device)
