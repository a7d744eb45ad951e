"""Temporary folders that a killed process leaves, and the next one of the same kind removes."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_LOCK = "lock"
_UNLOCKED_SECONDS = 86_400


@contextlib.contextmanager
def owned_folder(prefix: str, parent: Path) -> Iterator[Path]:
    """Make a folder that this process holds while it lives, and remove it at the end.

    The folders with the same prefix whose processes have ended are removed first.

    Args:
        prefix: The start of its name.
        parent: The folder that it lies in.

    Yields:
        The folder. It holds a file named `lock`.

    Raises:
        OSError: The folder cannot be made.
    """
    _sweep(prefix, parent)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        # It has its name only when it is held, so that nobody takes it for one of an ended process.
        new = folder / f"{_LOCK}.new"
        held = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(folder / _LOCK)
            yield folder
        finally:
            os.close(held)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(prefix: str, parent: Path) -> None:
    """Remove this user's folders that no living process holds."""
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                _remove_if_left(folder, found.st_mtime)


def _remove_if_left(folder: Path, changed: float) -> None:
    """Remove a folder if its process has ended.

    Raises:
        OSError: A living process holds it.
    """
    try:
        held = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:  # it is being made, or its process was killed meanwhile
        if time.time() - changed > _UNLOCKED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(held)
