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
from pipeline.training.checkpoint_files import Checkpoint
from pipeline.training.checkpoints import by_step, choose_checkpoint, list_names, read_checkpoint
from pipeline.training.stored_tensors import FileRecord, check_file, check_size
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


def agreed_checkpoint(folder: Folder) -> tuple[Checkpoint | None, list[str]]:
    """Return the checkpoint that all ranks resume from.

    Rank 0 chooses it. All ranks look whether they see the same one, and each of them reads and
    checks an equal number of its files. This is a collective: all ranks must call it.

    Args:
        folder: The folder of the checkpoints.

    Returns:
        The checkpoint, or None if there is none; and notes on the choice for the user, which are
        the same on every rank.

    Raises:
        UserError: All ranks raise it. No checkpoint is whole, or a rank does not find the chosen
            one.
    """
    # A directory listing can be stale although a path is not: rank 0 also tries what others list.
    listed: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(listed, list_names(folder))
    if dist.get_rank() == 0:
        try:
            chosen, notes = choose_checkpoint(
                folder, {n for ns in listed for n in ns}, _check_on_all_ranks
            )
            answer: _Message = ("chosen", chosen and chosen.path.name, notes)
        except (UserError, _DiffersError) as error:
            answer = ("error", str(error), [])
        _broadcast(answer)
    else:
        while (answer := _broadcast(None))[0] == "check":
            _check_share(folder, *answer[1:])
    kind, name, notes = answer
    if kind == "error":
        raise UserError(name)
    own = listed[dist.get_rank()]
    every_rank(lambda: _refuse_later(folder, own, listed[0], name or ""))
    return (read_checkpoint(folder / name) if name else None), notes


_Message = tuple[str, Any, Any]


class _DiffersError(Exception):
    """A rank sees another checkpoint than rank 0, which is not the checkpoint's fault."""


def _broadcast(message: _Message | None) -> Any:
    messages = [message]
    dist.broadcast_object_list(messages, src=0)
    return messages[0]


def _check_on_all_ranks(checkpoint: Checkpoint) -> None:
    """Check a checkpoint on all ranks. The others are in `_check_share`.

    Raises:
        UserError: It is damaged.
        _DiffersError: A rank sees another one.
    """
    _broadcast(("check", checkpoint.path.name, checkpoint.files))
    faults = _check_share(checkpoint.path.parent, checkpoint.path.name, checkpoint.files)
    for differs, file, text in faults:
        if not differs:  # the checkpoint is damaged if this rank finds the same
            check_file(checkpoint.path, file, checkpoint.files[file])
        raise _DiffersError(text)


def _check_share(
    folder: Folder, name: str, files: dict[str, FileRecord]
) -> list[tuple[bool, str, str]]:
    """Compare a checkpoint with rank 0's, and read this rank's share of its files.

    Returns:
        For each rank that finds a fault: whether it sees another checkpoint than rank 0, the file,
        and the error.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    fault, path = None, folder / name
    where = f" (worker {rank} on {socket.gethostname()})"
    try:
        _same(path, files)
    except UserError as error:
        fault = (True, "", f"{error}{where}")
    else:
        for file in sorted(files)[rank::world_size]:
            try:
                check_file(path, file, files[file])
            except UserError as error:
                fault = (False, file, f"{error}{where}")
                break
    faults: list[tuple[bool, str, str] | None] = [None] * world_size
    dist.all_gather_object(faults, fault)
    return [each for each in faults if each is not None]


def _same(path: Folder, files: dict[str, FileRecord]) -> None:
    """Check that this rank sees the checkpoint that rank 0 has chosen."""
    if not _appears(path / "state.json"):
        raise UserError(
            f"{path}: worker 0 resumes from this checkpoint, and it is not there; set 'output' to "
            "a folder on storage that all machines share"
        )
    found = read_checkpoint(path)
    if found.files != files:
        raise UserError(
            f"{path}: is another checkpoint than worker 0 resumes from; set 'output' to a folder "
            "on storage that all machines share"
        )
    for file, record in files.items():
        check_size(path, file, record)


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
