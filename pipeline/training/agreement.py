"""Check that all ranks see the same folder, shards and checkpoint before the first step.

A rank that reads a different folder would resume at a different step. The next checkpoint would
then be corrupt although its hashes match.
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
from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.runs.storage import read_bytes, remove, write_bytes
from pipeline.training.checkpoint_files import ChosenCheckpoint
from pipeline.training.checkpoints import by_step, choose_checkpoint, list_names, load_checkpoint
from shards.errors import ShardError

# A network file system may show a new file on another machine only a moment later.
PATIENCE_SECONDS = 5.0
_MAX_BYTES = 64 << 20


def every_rank(check: Callable[[], None]) -> None:
    """Run a check on every rank. If it fails on one rank, all ranks raise the same error.

    This is a collective: all ranks must call it.

    Args:
        check: The check. It raises UserError, ShardError or ClusterError.

    Raises:
        UserError: The error of the first rank that has one, with the name of its machine.
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
def folder_token(folder: Folder) -> Iterator[str]:
    """Write a file by which workers recognise the run's folder, and remove it afterwards.

    Yields:
        The token, which is both the name and the content of the file.

    Raises:
        UserError: The folder cannot be written.
    """
    token = f".seen-by-all-{secrets.token_hex(8)}"
    path = folder / token
    try:
        if isinstance(path, Path):
            path.write_text(token, "utf-8")
        else:
            write_bytes(path, token.encode())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another 'output'"
        ) from None
    try:
        yield token
    finally:
        remove(path)


def check_same_folder(folder: Folder, token: str) -> None:
    """Check on every rank that the run's folder is the driver's.

    Args:
        folder: The folder of the run.
        token: The token from `folder_token`. If it is empty, nothing is checked.

    Raises:
        UserError: All ranks raise it. It names the first machine that sees another folder.
    """

    def check() -> None:
        if token and not _appears(folder / token, token):
            raise UserError(
                f"{folder}: is not the folder that the driver writes to; set 'output' to a folder "
                "on storage that all machines share"
            )

    every_rank(check)


def check_same_shards(location: str, digest: str) -> None:
    """Check that all ranks open the same shard set.

    Args:
        location: The address of the set, for the error.
        digest: The digest of the set that this rank has opened.

    Raises:
        UserError: All ranks raise it. It names the first machine whose set differs from rank 0's.
    """
    message = [digest]
    dist.broadcast_object_list(message, src=0)

    def check() -> None:
        if digest != message[0]:
            raise UserError(
                f"{location}: holds shard set {digest[:12]}, and worker 0 finds {message[0][:12]} "
                "there; set 'shards' to an address that all machines share"
            )

    every_rank(check)


def agreed_checkpoint(folder: Folder) -> tuple[ChosenCheckpoint | None, list[str]]:
    """Return the checkpoint that all ranks resume from.

    Rank 0 chooses it, and all ranks confirm its hashes. This is a collective: all ranks must call
    it.

    Args:
        folder: The folder of the checkpoints.

    Returns:
        The checkpoint with its tensors, or None if there is none; and notes on the choice for the
        user, which are the same on every rank.

    Raises:
        UserError: All ranks raise it. No checkpoint is whole, or a rank does not find the chosen
            one.
    """
    # A directory listing can be stale although a path is not: rank 0 also tries what others list.
    listed: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(listed, list_names(folder))
    chosen: ChosenCheckpoint | None = None
    message: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            chosen, notes = choose_checkpoint(folder, {n for ns in listed for n in ns})
            found = (chosen.checkpoint.path.name, chosen.checkpoint.sha256) if chosen else None
            message = [("chosen", found, notes)]
        except UserError as error:
            message = [("error", str(error), [])]
    dist.broadcast_object_list(message, src=0)
    kind, found, notes = message[0]
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


def _same(path: Folder, sha256: dict[str, str]) -> ChosenCheckpoint:
    """Return the checkpoint that rank 0 has chosen, as this rank sees it."""
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


def _refuse_later(folder: Folder, names: list[str], rank_0_names: list[str], chosen: str) -> None:
    """Refuse to resume if this rank lists a later checkpoint that rank 0 cannot open.

    An earlier one may come from a stale listing and already be deleted.
    """
    later = [name for name in names if name not in rank_0_names and by_step(name) > by_step(chosen)]
    if later:
        raise UserError(
            f"{folder / later[-1]}: is a checkpoint that worker 0 does not find; set 'output' to a "
            "folder on storage that all machines share"
        )


def _appears(path: Folder, content: str | None = None) -> bool:
    """Return whether the file exists with this content, now or within `PATIENCE_SECONDS`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(OSError, ShardError, UserError):
            data = read_bytes(path, _MAX_BYTES)
            if content is None or data == content.encode():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
