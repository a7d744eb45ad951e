"""Batches of a shard set as tensors, in an order that resumes exactly at any world size."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from shards.collate import decode_arrays
from shards.epoch import EpochPlan, Window, epoch_order, resolve_window
from shards.errors import ShardError
from shards.lanes import LaneOrder, Lanes
from shards.loader_batches import (
    BatchList,
    BatchMaker,
    BatchStream,
    Decode,
    MadeElsewhere,
    PlanSampler,
    ShardBatch,
    steps_of,
)
from shards.loader_state import LoaderState
from shards.order import EpochOrder, epoch_key
from shards.positions import PositionSpec
from shards.reader import ShardReader
from shards.recordings import Recordings

__all__ = ["BatchList", "BatchStream", "ShardBatch", "ShardLoader"]


class ShardLoader:
    """Batches of one split for one of `world_size` ranks, epoch after epoch.

    Iterating yields the rest of the current epoch, then the loader moves to the next epoch. Every
    rank has the same number of steps, so none waits for another at the end. An incomplete last
    global batch is either dropped or filled with `PADDING`, which has weight 0.

    `state_dict` counts the batches yielded, not those that workers have made ahead. A loader with
    another world size, rank, batch size or number of workers can resume from it: it continues at
    the same sample of the same order. If the global batch size is the same, so are the global
    batches.

    A sample is copied once, from the shard into its row of the batch. The batch is in pinned memory
    if `pin_memory` is set. A worker fills a batch in shared memory; pinning it is a second copy.

    The loader works alone, or inside a plain DataLoader through `stream` or `batches`.

    Args:
        reader: The reader of the split.
        batch_size: The samples per rank and step.
        rank: The rank of this process.
        world_size: The number of ranks.
        seed: The seed of the shuffle.
        shuffle: If false, the order is that of the shards.
        window: The number of shards that are shuffled together; see `epoch_positions`.
        balance: How evenly classes are drawn; see `epoch_order`.
        nodes: The parts of the set that each global batch is taken from, so that the ranks of a
            node read shards of their own; see `NodeOrder`. It divides the global batch.
        drop_last: If true, an incomplete last global batch is dropped, else it is filled.
        num_workers: The number of processes that make batches; with 0, this process does. They are
            spawned, so `decode` must be importable.
        pin_memory: Whether to put batches into page-locked memory, for fast copies to a GPU.
        decode: Turns a sample into arrays. The default returns its .npy members by name.
        pad_to: Maps a field to the length to which its first axis is padded. The default is the
            longest sample of the batch.
        skip_bad: If true, a sample that cannot be decoded gets weight 0 and is named in `bad`; else
            it raises an error.
        skip_corrupt: The same for a sample that cannot be read or has changed since it was written.
            The default is `skip_bad`.
        prefetch: The batches that each worker makes ahead.
        lanes: Reads the split as streams: each row of the batch is a lane, which gets the parts of
            a recording in order, then the next recording (`LaneOrder`). A global batch is then
            the next part of a group of lanes, and a position between two optimizer steps can be
            resumed. None reads samples.
        global_batch: The samples of one step over all ranks, if they are fewer than `world_size *
            batch_size`; the last ranks then have empty rows. So a global batch can have a size that
            the ranks do not divide.
        made_elsewhere: Makes the batches in other processes: it takes `BatchMaker.__getitem__` and
            the steps, and yields their batches in the same order. `num_workers` must be 0 then.

    Attributes:
        reader: The reader of the split.
        recordings: The recordings of the split; None without `lanes`.

    Raises:
        ShardError: An argument is out of range, `pin_memory` is set without a GPU, or the split has
            no streams (`Recordings.of`).
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
        balance: float = 0.0,
        nodes: int = 1,
        drop_last: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        decode: Decode | None = None,
        pad_to: Mapping[str, int] | None = None,
        skip_bad: bool = False,
        skip_corrupt: bool | None = None,
        prefetch: int = 2,
        lanes: Lanes | None = None,
        global_batch: int | None = None,
        made_elsewhere: MadeElsewhere | None = None,
    ) -> None:
        if num_workers < 0 or prefetch < 1:
            raise ShardError(f"num_workers {num_workers}, prefetch {prefetch}: give >= 0 and >= 1")
        if made_elsewhere is not None and num_workers:
            raise ShardError(f"num_workers {num_workers}: batches are made elsewhere; give 0")
        if pin_memory and not torch.cuda.is_available():
            raise ShardError("pin_memory: there is no GPU to pin memory for; set it to false")
        if lanes is not None and lanes.count != world_size * batch_size * lanes.groups:
            raise ShardError(
                f"{lanes}: {world_size} ranks with batches of {batch_size} have "
                f"{world_size * batch_size} lanes in a group; give as many"
            )
        if lanes is not None and balance:
            raise ShardError(f"balance {balance!r}: streams are read once each; give 0")
        if lanes is not None and nodes != 1:
            raise ShardError(f"nodes {nodes!r}: each rank reads its own streams; give 1")
        self.reader = reader
        self._lanes = lanes
        self.recordings = None if lanes is None else Recordings.of(reader)
        self._window: Window = window
        self._ranks: dict[str, Any] = {
            "rank": rank,
            "world_size": world_size,
            "batch_size": batch_size,
            "global_batch": global_batch,
        }
        self._drop_last = drop_last
        self._num_workers = num_workers
        self._made_elsewhere = made_elsewhere
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
            lanes=None if lanes is None else (lanes.count, lanes.parts),
            balance=balance,
            nodes=nodes,
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
        """Return the remaining batches of the current epoch, the same number on every rank."""
        return len(self._plan())

    def __iter__(self) -> Iterator[ShardBatch]:
        """Yield the rest of the current epoch.

        Raises:
            ShardError: A sample cannot be read, or the loader was moved during the iteration.
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
        """Go to the start of `epoch`. If that is the current epoch, keep the position in it."""
        if epoch != self.epoch:
            self.seek(epoch, 0)

    def seek(self, epoch: int, samples: int = 0) -> None:
        """Go to `epoch`, after its first `samples` samples, counted over all ranks."""
        self.load_state_dict(self.state_dict() | {"epoch": epoch, "samples": samples})

    def state_dict(self, after: ShardBatch | None = None) -> dict[str, Any]:
        """Return the position after the last batch that was yielded, ready for JSON.

        Args:
            after: A batch of the current epoch. If given, the position is after this batch. Use it
                if a plain DataLoader yields the batches.
        """
        state = self._state if after is None else replace(self._state, samples=after.samples)
        return state.to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at a saved position. A window of "auto" becomes the window of the state.

        Args:
            state: What `state_dict` returned, at any world size.

        Raises:
            ShardError: The state is invalid, or belongs to another shard set, split or order.
        """
        loaded = LoaderState.from_dict(state)
        own = replace(self._state, window=loaded.window) if self._window == "auto" else self._state
        loaded.check_same_order(own)
        if self._lanes is not None and loaded.samples % self._lanes.positions:
            raise ShardError(
                f"loader state: {loaded.samples} positions are within a step of streams, which has "
                f"{self._lanes.positions}; take the state between two steps"
            )
        if self._lanes is None and loaded.samples > len(self.reader):
            raise ShardError(
                f"loader state: {loaded.samples} samples of split {loaded.split!r}, which has "
                f"{len(self.reader)}; take another state"
            )
        self._state = loaded
        self._iteration = object()

    def stream(self) -> "BatchStream":
        """Return the rest of the current epoch for `DataLoader(..., batch_size=None)`."""
        return BatchStream(self._maker, self._plan())

    def batches(self) -> "BatchList":
        """Return the rest of the current epoch as a map-style data set: item k is batch k."""
        return BatchList(self._maker, self._plan())

    def position_table(self, spec: PositionSpec | None = None) -> torch.Tensor:
        """Return the Fourier features of a grid, float32 [tokens, channels].

        All samples share the table: give it to the model once, not with each batch. It is read
        once, and is pinned if batches are.

        Args:
            spec: The table to return. The default is the only table of the set.

        Raises:
            ShardError: The set does not have the table, or `spec` is None and the set does not have
                exactly one table.
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
        order: EpochOrder | LaneOrder
        if self._lanes is not None and self.recordings is not None:
            key = epoch_key(state.digest, state.split, state.seed, state.epoch)
            order = LaneOrder(self.recordings, key if state.shuffle else None, self._lanes)
        else:
            order = epoch_order(
                self.reader,
                seed=state.seed,
                epoch=state.epoch,
                shuffle=state.shuffle,
                window=state.window,
                balance=state.balance,
                nodes=state.nodes,
            )
        return EpochPlan(order, **self._ranks, start=state.samples, drop_last=self._drop_last)

    def _made(self, plan: EpochPlan) -> Iterator[ShardBatch]:
        if self._made_elsewhere is not None:
            for batch in self._made_elsewhere(self._maker.__getitem__, steps_of(plan)):
                yield batch.pin_memory() if self._pin_memory else batch
            return
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
                # Forked children would inherit the threads and sockets of this process.
                multiprocessing_context="spawn",
            )
        try:
            yield from self._workers
        except RuntimeError:  # a worker ended; it does so if the set was replaced
            self._workers = None
            self.reader.shard_set.require_unchanged()
            raise

    def _check(self, iteration: object) -> None:
        if iteration is not self._iteration:
            raise ShardError(
                "loader: another iteration was begun, or the loader moved, while this one goes on; "
                "use one iterator at a time"
            )
