"""Allows one command at a time in a run's folder, also on other machines that share the folder."""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.runs.object_lock import object_lock
from shards.errors import ShardError
from shards.files import exclusive_lock

# The child processes of a killed command hold its lock until they notice. The command itself
# ends in a moment.
PATIENCE_SECONDS, MOMENT_SECONDS = 30.0, 3.0
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def run_lock(
    path: Folder, what: str, notify: Callable[[str], None], *, patient: bool = False
) -> Iterator[Callable[[], None]]:
    """Hold a run's lock file against all other commands.

    The lock is the kernel's (flock), so a killed process does not hold it. A network file system
    passes it on to its server. If a file system has no locks, a notice says so and the work
    continues. Object storage has a lock of its own, `pipeline.runs.object_lock`.

    Args:
        path: The path of the lock file, which is removed afterwards.
        what: What is locked, for errors.
        notify: The function that shows the notice.
        patient: Whether to wait up to `PATIENCE_SECONDS` for another command that is still alive.

    Yields:
        A function that raises UserError if another command has taken the lock over. That happens
        only in object storage, to a command that was cut off from it.

    Raises:
        UserError: Another command holds the lock; the text names its process and machine.
    """
    if not isinstance(path, Path):
        patience = PATIENCE_SECONDS if patient else 0.0
        with object_lock(path, what, patience_seconds=patience) as check:
            yield check
        return
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        while True:
            try:
                stack.enter_context(exclusive_lock(path))
                _sign(path)
                break
            except ShardError as error:
                cause = error.__cause__
                if isinstance(cause, OSError):
                    if cause.errno not in _NO_LOCKS:
                        raise UserError(f"{path}: cannot be written ({cause.strerror})") from None
                    notify(
                        f"{path.parent}: this file system has no locks; take care that no other "
                        "command works there"
                    )
                    break
            holder = _holder(path)
            waits = PATIENCE_SECONDS if patient or _is_gone(holder) else MOMENT_SECONDS
            if time.monotonic() - started > waits:
                raise UserError(
                    f"{what}: another command is at work there{_name(holder)}; wait until it has "
                    "ended, or give this one another name (name=…)"
                )
            time.sleep(0.2)
        yield _nothing


def _nothing() -> None:
    """The kernel takes no lock away."""


def _sign(path: Path) -> None:
    about = {"pid": os.getpid(), "machine": socket.gethostname()}
    path.write_text(json.dumps(about), "utf-8")


def _holder(path: Path) -> tuple[int, str] | None:
    try:
        about = json.loads(path.read_text("utf-8"))
        return int(about["pid"]), str(about["machine"])[:80]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _is_gone(holder: tuple[int, str] | None) -> bool:
    """Return whether the process that took the lock has ended; then the lock is soon free."""
    if holder is None or holder[1] != socket.gethostname():
        return False
    try:
        return bool(psutil.Process(holder[0]).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _name(holder: tuple[int, str] | None) -> str:
    return f" (process {holder[0]} on {holder[1]})" if holder else ""
