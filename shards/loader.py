"""Batches of a shard set as tensors: in an order that resumes exactly, at any world size."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from shards.collate import decode_arrays
from shards.epoch import EpochPlan, Window, epoch_order, num_steps, resolve_window
from shards.errors import ShardError
from shards.loader_batches import (
    BatchList,
    BatchMaker,
    BatchStream,
    Decode,
    PlanSampler,
    ShardBatch,
)
from shards.loader_state import LoaderState
from shards.positions import PositionSpec
from shards.reader import ShardReader

__all__ = ["BatchList", "BatchStream", "ShardBatch", "ShardLoader"]


class ShardLoader:
    """Batches of one split, epoch after epoch, for one of `world_size` ranks.

    Iterating gives the rest of the current epoch and then moves on to the next one. Every rank has
    the same number of steps, so that none waits for another at the end: the samples that do not
    fill a global batch are dropped, or it is filled up with `PADDING`, which weighs nothing.

    `state_dict` counts the batches handed out, not those that workers have made ahead. A loader of
    any world size, rank, batch size and number of workers goes on from it at the same sample of the
    same order; with the same global batch size it gives the same global batches.

    A sample is copied once, from the shard into its row of the batch; that row is in pinned memory
    where that is asked for, and in shared memory where a worker fills it (pinning is then a second
    copy).

    Works on its own, and in a plain DataLoader by `stream` or `batches`.

    Args:
        reader: of the split.
        batch_size: samples a rank and step.
        rank, world_size: this process among all.
        seed: of the shuffle.
        shuffle: false gives the order of the shards.
        window: shards that are shuffled together; see `epoch_positions`.
        drop_last: drop an incomplete last global batch, else fill it up.
        num_workers: processes that make batches; 0 makes them here. They are spawned, so `decode`
            must be importable.
        pin_memory: put batches into page-locked memory, for fast copies to a GPU.
        decode: makes a sample's arrays; default its .npy members, by name.
        pad_to: field to the length that its first axis is filled up to; default the longest sample
            of the batch.
        skip_bad: give samples that cannot be decoded weight 0 and name them in `bad`, else raise.
        skip_corrupt: the same for samples that cannot be read, or are not as they were written;
            default as `skip_bad`.
        prefetch: batches that each worker makes ahead.

    Raises:
        ShardError: an argument out of range, or `pin_memory` without a GPU.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        window: Window = "auto",
        drop_last: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        decode: Decode | None = None,
        pad_to: Mapping[str, int] | None = None,
        skip_bad: bool = False,
        skip_corrupt: bool | None = None,
        prefetch: int = 2,
    ) -> None:
        if num_workers < 0 or prefetch < 1:
            raise ShardError(f"num_workers {num_workers}, prefetch {prefetch}: give >= 0 and >= 1")
        if pin_memory and not torch.cuda.is_available():
            raise ShardError("pin_memory: there is no GPU to pin memory for; set it to false")
        self.reader = reader
        self._window: Window = window
        self._ranks = {"rank": rank, "world_size": world_size, "batch_size": batch_size}
        self._drop_last = drop_last
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._prefetch = prefetch
        self._state = LoaderState(
            digest=reader.shard_set.digest,
            split=reader.split,
            seed=seed,
            shuffle=shuffle,
            window=resolve_window(window, reader),
            epoch=0,
            samples=0,
        )
        self._maker = BatchMaker(
            reader,
            decode or decode_arrays,
            dict(pad_to or {}),
            skip_bad,
            skip_bad if skip_corrupt is None else skip_corrupt,
        )
        self._iteration = object()
        self._workers: DataLoader | None = None
        self._sampler = PlanSampler(reader, self._plan())
        self._tables: dict[str, torch.Tensor] = {}

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self._state.epoch

    def __len__(self) -> int:
        """Batches left of the current epoch, as many on every rank."""
        left = len(self.reader) - self._state.samples
        global_batch_size = self._ranks["world_size"] * self._ranks["batch_size"]
        return num_steps(left, global_batch_size, drop_last=self._drop_last)

    def __iter__(self) -> Iterator[ShardBatch]:
        """The rest of the current epoch.

        Raises:
            ShardError: a sample cannot be read, or the loader was moved while this goes on.
        """
        mine = self._iteration = object()
        plan, epoch = self._plan(), self.epoch
        for batch in self._made(plan):
            self._check(mine)
            self._state = replace(self._state, samples=batch.samples)
            yield batch
        self._check(mine)
        self._state = replace(self._state, epoch=epoch + 1, samples=0)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of `epoch`; within that epoch already, it stays where it is."""
        if epoch != self.epoch:
            self.seek(epoch, 0)

    def seek(self, epoch: int, samples: int = 0) -> None:
        """Goes to `epoch` after its first `samples` samples of all ranks together."""
        self.load_state_dict(self.state_dict() | {"epoch": epoch, "samples": samples})

    def state_dict(self, after: ShardBatch | None = None) -> dict[str, Any]:
        """Where the loader is, as JSON holds it: after the batch that it handed out last.

        Args:
            after: a batch of the current epoch, for where a plain DataLoader hands them out.
        """
        state = self._state if after is None else replace(self._state, samples=after.samples)
        return state.to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes where a loader of any world size was. The window "auto" becomes the state's.

        Raises:
            ShardError: the state is of another shard set, split or order, or is none.
        """
        loaded = LoaderState.from_dict(state)
        own = replace(self._state, window=loaded.window) if self._window == "auto" else self._state
        loaded.check_same_order(own)
        if loaded.samples > len(self.reader):
            raise ShardError(
                f"loader state: {loaded.samples} samples of split {loaded.split!r}, which has "
                f"{len(self.reader)}; take another state"
            )
        self._state = loaded
        self._iteration = object()

    def stream(self) -> "BatchStream":
        """The rest of the current epoch for `DataLoader(..., batch_size=None)`."""
        return BatchStream(self._maker, self._plan())

    def batches(self) -> "BatchList":
        """The same, map-style: item k is the k-th batch."""
        return BatchList(self._maker, self._plan())

    def position_table(self, spec: PositionSpec | None = None) -> torch.Tensor:
        """Fourier features of a grid, float32 [tokens, channels], shared by all samples.

        Read once, and pinned where batches are: hand it to the model once and not with each batch.

        Args:
            spec: the table; default the set's only one.

        Raises:
            ShardError: the set has another table, or none or several and no `spec` was given.
        """
        shard_set = self.reader.shard_set
        if spec is None:
            specs = list(shard_set.manifest.positions.values())
            if len(specs) != 1:
                raise ShardError(
                    f"{shard_set.location}: has {len(specs)} position tables; say which one by its "
                    "PositionSpec"
                )
            spec = specs[0]
        if spec.digest not in self._tables:
            table = torch.from_numpy(np.array(shard_set.position_table(spec)))
            self._tables[spec.digest] = table.pin_memory() if self._pin_memory else table
        return self._tables[spec.digest]

    def _plan(self) -> EpochPlan:
        state = self._state
        order = epoch_order(
            self.reader,
            seed=state.seed,
            epoch=state.epoch,
            shuffle=state.shuffle,
            window=state.window,
        )
        return EpochPlan(order, **self._ranks, start=state.samples, drop_last=self._drop_last)

    def _made(self, plan: EpochPlan) -> Iterator[ShardBatch]:
        if not self._num_workers:
            for step in range(len(plan)):
                yield self._maker.step(plan, step, pinned=self._pin_memory)
            return
        self._sampler.plan = plan
        if self._workers is None:
            self._workers = DataLoader(
                self._maker,
                sampler=self._sampler,
                batch_size=None,
                num_workers=self._num_workers,
                pin_memory=self._pin_memory,
                prefetch_factor=self._prefetch,
                persistent_workers=True,
                # Threads and sockets of this process must not be inherited by forked children.
                multiprocessing_context="spawn",
            )
        try:
            yield from self._workers
        except RuntimeError:  # torch's, of workers that ended; they do where the set is another
            self._workers = None
            self.reader.shard_set.require_unchanged()
            raise

    def _check(self, iteration: object) -> None:
        if iteration is not self._iteration:
            raise ShardError(
                "loader: another iteration was begun, or the loader moved, while this one goes on; "
                "use one iterator at a time"
            )
