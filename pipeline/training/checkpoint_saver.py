"""Save checkpoints beside the training: every rank writes its own part, and rank 0 commits them.

A save copies this rank's part to host memory, and the training goes on. A thread then writes and
hashes the part. When all ranks have finished, rank 0 writes `state.json`, which makes the parts a
checkpoint. The threads of all ranks talk in a process group of their own, so that nothing of theirs
comes between the collectives of the training.
"""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.fragments import Fragment
from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.runs.records import write_json
from pipeline.runs.storage import make_folder, remove
from pipeline.training.checkpoint_files import STATE_FILE, TrainState, not_finite_line
from pipeline.training.checkpoints import keep_best_and_last, sweep, sweep_step
from pipeline.training.part_files import HostCopy
from pipeline.training.rank_info import RankInfo
from pipeline.training.stored_tensors import FileRecord
from shards.errors import ShardError

SLOWEST = timedelta(days=1)
"""How long the threads wait for the slowest rank. If a rank dies, they notice at once."""
MOST_FAILURES = 3
"""How many saves in a row may fail to be written before the training ends."""


class CheckpointSaver:
    """Saves the checkpoints of a training. All ranks must make it (a collective).

    Args:
        folder: The folder of the checkpoints, on storage that all ranks share.
        rank_info: This process among all ranks.

    A checkpoint that cannot be written, as on a full disk, is left out, and the training goes on.
    It ends at the third one in a row, or if the last one of the training is among them.

    Attributes:
        seconds: How long the last save took, from its begin until it was committed.
    """

    def __init__(self, folder: Folder, rank_info: RankInfo) -> None:
        self.folder = folder
        self._rank_info = rank_info
        self._group = dist.new_group(backend="gloo", timeout=SLOWEST)
        self._copies: dict[str, HostCopy] = {}
        self._thread: threading.Thread | None = None
        self._error: UserError | None = None
        self.seconds = 0.0
        self._notes: list[str] = []
        self._failures = 0

    @property
    def part_bytes(self) -> int:
        """The bytes of this rank's part of the last checkpoint."""
        return sum(copy.num_bytes for copy in self._copies.values())

    def save(
        self, state: TrainState, parts: Mapping[str, AbstractContextManager[list[Fragment]]]
    ) -> None:
        """Copy this rank's part, and begin to write it. All ranks must call this (a collective).

        The save before it is waited for.

        Args:
            state: The position of the training.
            parts: What this rank saves of each kind of tensors. It is loaded while it is entered.
                Together, all ranks must give every tensor whole, once.

        Raises:
            UserError: A value is not finite, a tensor has a type that no checkpoint has, or the
                save before this one was the third in a row that failed.
        """
        self.wait()
        began = time.perf_counter()
        problem = None
        for kind, part in parts.items():
            copy = self._copies.setdefault(kind, HostCopy(self._rank_info.device))
            try:
                with part as fragments:
                    odd = copy.take(fragments)
            except ValueError as error:
                problem = problem or str(error)
            else:
                problem = problem or (odd and not_finite_line(odd, state.step))
        problems = self._gather(problem)
        if any(problems):
            raise UserError(next(filter(None, problems)))
        copied = None
        if self._rank_info.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
        self._thread = threading.Thread(
            target=self._write,
            args=(state, list(parts), copied, began),
            name=f"checkpoint-{state.step}",
            daemon=True,
        )
        self._thread.start()

    def check(self) -> None:
        """Note a save that has failed. All ranks must call this (a collective).

        Nothing is exchanged while no save is going on.

        Raises:
            UserError: It is the third one in a row.
        """
        if self._thread is not None:
            is_done = not self._thread.is_alive()
            if all(self._gather(is_done)):
                self.wait()

    def wait(self, *, is_required: bool = False) -> None:
        """Wait until the last save is committed or has failed, which is the same on all ranks.

        Args:
            is_required: Whether the training cannot go on without this checkpoint, or ends with it.

        Raises:
            UserError: It failed, and is required or the third one in a row.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        self._failures = self._failures + 1 if error else 0
        if error and self._failures >= MOST_FAILURES:
            raise UserError(f"{error}; {MOST_FAILURES} checkpoints in a row could not be written")
        if error and is_required:
            raise error
        if error:
            self._notes.append(f"{error}; the training goes on, and saves again later")

    def news(self) -> list[str]:
        """Return the lines about checkpoints that were left out since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """Wait for the last save, and leave its error aside: the training has another one."""
        with contextlib.suppress(UserError):
            self.wait()

    def _gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks. No save may be going on in the same group."""
        values = [None] * self._rank_info.world_size
        dist.all_gather_object(values, value)
        return values

    def _write(self, state: TrainState, kinds: list[str], copied: Any, began: float) -> None:
        path = self.folder / f"step-{state.step:08d}"
        try:
            if copied is not None:
                copied.synchronize()
            self._write_parts(path, state, kinds)
            self.seconds = time.perf_counter() - began
        except UserError as error:
            self._error = error
        except Exception as error:  # the thread's end: `wait` raises whatever it was
            self._error = UserError(_refused(path, error))

    def _write_parts(self, path: Folder, state: TrainState, kinds: list[str]) -> None:
        token = self._on_rank_0(lambda: _begin(path), path)
        written: dict[str, FileRecord] = {}
        problem, name = None, ""
        try:
            make_folder(path)
            for kind in kinds:
                name = self._part_name(kind, token)
                written[name] = self._copies[kind].write(path / name)
        except Exception as error:  # storage raises many kinds, and the other ranks are waiting
            problem = f"{_refused(path, error)}{self._where()}"
        parts: list[Any] = [None] * self._rank_info.world_size
        dist.all_gather_object(parts, (written, problem), group=self._group)
        if problem := next((each for _, each in parts if each), None):
            with contextlib.suppress(OSError, UserError):
                for mine in filter(None, {*written, name}):
                    remove(path / mine)
                if isinstance(path, Path):
                    path.rmdir()  # succeeds on the last rank
            raise UserError(problem)
        files = {name: record for part, _ in parts for name, record in part.items()}
        self._on_rank_0(lambda: _commit(path, state, files), path)

    def _on_rank_0(self, action: Any, path: Folder) -> Any:
        """Return what an action on rank 0 returns. Its error is raised on all ranks."""
        message: list[Any] = [None, None]
        if self._rank_info.rank == 0:
            try:
                message[0] = action()
            except Exception as error:  # as above
                message[1] = _refused(path, error)
        dist.broadcast_object_list(message, src=0, group=self._group)
        if message[1]:
            raise UserError(message[1])
        return message[0]

    def _where(self) -> str:
        rank_info = self._rank_info
        if rank_info.world_size == 1:
            return ""
        return f" (worker {rank_info.rank} on {socket.gethostname()})"

    def _part_name(self, kind: str, token: str) -> str:
        rank, world_size = self._rank_info.rank, self._rank_info.world_size
        return f"{kind}-{token}-{rank:05d}-of-{world_size:05d}.safetensors"


def _begin(path: Folder) -> str:
    """Remove what killed saves have left, and return a name for the parts of a new one."""
    sweep(path.parent)
    return secrets.token_hex(4)


def _commit(path: Folder, state: TrainState, files: Mapping[str, FileRecord]) -> None:
    parts = {
        name: {"sha256": record.sha256, "bytes": record.num_bytes}
        for name, record in sorted(files.items())
    }
    write_json(path / STATE_FILE, {**asdict(state), "parts": parts})
    sweep_step(path)  # the step may have been saved before, by a run that resumed before it
    keep_best_and_last(path.parent)


def _refused(path: Folder, error: Exception) -> str:
    if isinstance(error, ShardError | UserError):
        return str(error)
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
    return f"{path}: cannot be written ({reason})"
