"""One command at a time in a run's folder, on this machine and on those that share the folder."""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from pipeline.errors import UserError
from shards.errors import ShardError
from shards.files import exclusive_lock

# Processes that a killed command had started hold its lock until they notice; the command itself
# takes a moment to end.
PATIENCE_SECONDS, MOMENT_SECONDS = 30.0, 3.0
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def run_lock(
    path: Path, what: str, tell: Callable[[str], None], *, patient: bool = False
) -> Iterator[None]:
    """Hold a lock file of a run against all other commands; it is gone afterwards.

    The lock is the kernel's (flock), so a killed process holds none; a network file system passes
    it on to its server. Where a file system has no locks, a line says so and the work goes on.

    Args:
        path: of the lock file.
        what: what is locked, for errors.
        tell: takes that line.
        patient: wait for a moment even where the holder is still there.

    Raises:
        UserError: another command holds it; the text names its process and machine.
    """
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
                    tell(
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
        yield


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
    """Whether the process that took the lock has ended, so that the lock is soon free."""
    if holder is None or holder[1] != socket.gethostname():
        return False
    try:
        return bool(psutil.Process(holder[0]).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _name(holder: tuple[int, str] | None) -> str:
    return f" (process {holder[0]} on {holder[1]})" if holder else ""
