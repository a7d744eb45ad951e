"""What all ranks of a training must find alike before the first step: folders, shards, checkpoint.

A rank that reads another folder than the others would resume at another step, and the checkpoint
written after that would be corrupt with hashes that hold.
"""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cluster.errors import ClusterError
from pipeline.errors import UserError
from pipeline.training.checkpoints import (
    ChosenCheckpoint,
    by_step,
    choose_checkpoint,
    list_names,
    load_checkpoint,
)
from shards.errors import ShardError

# A network file system may show a new file a moment later on another machine.
PATIENCE_SECONDS = 5.0


def every_rank(check: Callable[[], None]) -> None:
    """Run a check on every rank; where one fails, all raise the same error.

    A collective: all ranks must call it.

    Raises:
        UserError: the error of the first rank that has one, with the name of its machine.
    """
    problem = None
    try:
        check()
    except (UserError, ShardError, ClusterError) as error:
        problem = f"{error} (worker {dist.get_rank()} on {socket.gethostname()})"
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for text in problems:
        if text is not None:
            raise UserError(text)


@contextlib.contextmanager
def folder_token(folder: Path) -> Iterator[str]:
    """A file in the run's folder by which workers know it again; gone afterwards.

    Yields:
        The token: the file's name and content.

    Raises:
        UserError: the folder cannot be written.
    """
    token = f".seen-by-all-{secrets.token_hex(8)}"
    path = folder / token
    try:
        path.write_text(token, "utf-8")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another 'output'"
        ) from None
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


def check_same_folder(folder: Path, token: str) -> None:
    """Refuse a run's folder that is not the driver's on every rank.

    Args:
        folder: of the run.
        token: what `folder_token` gave; an empty one is not looked for.

    Raises:
        UserError: on every rank, naming the first machine that sees another folder.
    """

    def check() -> None:
        if token and not _appears(folder / token, token):
            raise UserError(
                f"{folder}: is not the folder that the driver writes to; set 'output' to a folder "
                "on storage that all machines share"
            )

    every_rank(check)


def check_same_shards(location: str, digest: str) -> None:
    """Refuse a shard set that is another one on another rank.

    Raises:
        UserError: on every rank, naming the first machine whose set differs from rank 0's.
    """
    told = [digest]
    dist.broadcast_object_list(told, src=0)

    def check() -> None:
        if digest != told[0]:
            raise UserError(
                f"{location}: holds shard set {digest[:12]}, and worker 0 finds {told[0][:12]} "
                "there; set 'shards' to a place that all machines share"
            )

    every_rank(check)


def agreed_checkpoint(folder: Path) -> tuple[ChosenCheckpoint | None, list[str]]:
    """The checkpoint that all ranks go on from: rank 0 chooses, and all confirm its hashes.

    A collective: all ranks must call it.

    Args:
        folder: of the checkpoints.

    Returns:
        The checkpoint with its tensors, or None where there is none; and what a person should know
        of the choice (on every rank).

    Raises:
        UserError: on every rank: no checkpoint is whole, or a rank does not find the chosen one.
    """
    # A listing can be stale where a path is not: rank 0 also looks for what the others list.
    listed: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(listed, list_names(folder))
    chosen: ChosenCheckpoint | None = None
    told: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            chosen, notes = choose_checkpoint(folder, {n for ns in listed for n in ns})
            found = (chosen.checkpoint.path.name, chosen.checkpoint.sha256) if chosen else None
            told = [("chosen", found, notes)]
        except UserError as error:
            told = [("error", str(error), [])]
    dist.broadcast_object_list(told, src=0)
    kind, found, notes = told[0]
    if kind == "error":
        raise UserError(found)
    name, sha256 = found or ("", {})

    def confirm() -> None:
        nonlocal chosen
        _refuse_later(folder, listed[dist.get_rank()], listed[0], name)
        if found is None:
            return
        if chosen is None:
            chosen = _same(folder / name, sha256)

    every_rank(confirm)
    return chosen, notes


def _same(path: Path, sha256: dict[str, str]) -> ChosenCheckpoint:
    """The checkpoint that rank 0 has chosen, as this rank sees it."""
    if not _appears(path / "state.json"):
        raise UserError(
            f"{path}: worker 0 resumes from this checkpoint, and it is not there; set 'output' to "
            "a folder on storage that all machines share"
        )
    loaded = load_checkpoint(path)
    if loaded.checkpoint.sha256 != sha256:
        raise UserError(
            f"{path}: is another checkpoint than worker 0 resumes from; set 'output' to a folder "
            "on storage that all machines share"
        )
    return loaded


def _refuse_later(folder: Path, names: list[str], rank_0_names: list[str], chosen: str) -> None:
    """Refuse to go on where this rank lists a later checkpoint, which rank 0 cannot open.

    An earlier one may be in a stale listing and gone since.
    """
    later = [name for name in names if name not in rank_0_names and by_step(name) > by_step(chosen)]
    if later:
        raise UserError(
            f"{folder / later[-1]}: is a checkpoint that worker 0 does not find; set 'output' to a "
            "folder on storage that all machines share"
        )


def _appears(path: Path, content: str | None = None) -> bool:
    """Whether the file is there, with this content, now or in a moment."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = path.read_text("utf-8")
            if content is None or text == content:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
