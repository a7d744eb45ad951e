"""The lock files by which torch builds a C++ extension once, and which killed builds leave behind.

Torch makes the file `lock` in the extension's folder before it builds, and every process that finds
it waits until it is gone. If the builder is killed, they wait for ever.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

_LOCK = "lock"


@contextlib.contextmanager
def builds_held(names: Sequence[str]) -> Iterator[None]:
    """Let no other process of this project build extensions, and remove what killed builds left.

    Lock files that a process on this machine has open are kept: its build goes on.

    Args:
        names: The names of the extensions, as `torch.utils.cpp_extension.load` takes them.

    Raises:
        OSError: A folder cannot be made or written.
    """
    from torch.utils import cpp_extension  # imports setuptools

    folders = [Path(cpp_extension._get_build_directory(name, verbose=False)) for name in names]
    with contextlib.ExitStack() as opened:
        for folder in folders:
            held = os.open(folder / "perceiver.lock", os.O_CREAT | os.O_RDWR, 0o600)
            opened.callback(os.close, held)
            fcntl.flock(held, fcntl.LOCK_EX)
        left = [folder / _LOCK for folder in folders if (folder / _LOCK).exists()]
        if left:
            in_use = _open_files()
            for file in left:
                if str(file.resolve()) not in in_use:
                    file.unlink(missing_ok=True)
        yield


def _open_files() -> set[str]:
    """Return the files that processes of this user have open."""
    found: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):  # another user's, or it has ended
            for number in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):  # it was closed meanwhile
                    found.add(str(number.readlink()))
    return found
