"""Files that appear complete or not at all, and that survive a power cut once they appear."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from shards.errors import ShardError

_BUFFER_BYTES = 1 << 20


class AtomicFile:
    """Write `path` under a temporary name in the same folder; the end of `with` renames it.

    An exception inside the block removes the temporary file and leaves `path` unchanged. A process
    killed inside the block leaves a temporary file, which `is_temporary` recognises.

    Raises:
        ShardError: The file system fails, for example because the disk is full. Other exceptions
            from inside the block pass through unchanged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        unique = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._temporary = path.with_name(f"{_temporary_start(path)}{unique}.tmp")

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise self._refused(error) from error
        return self

    def write(self, data: bytes) -> int:
        """Append `data`. Return the number of bytes written."""
        try:
            return self._file.write(data)
        except OSError as error:
            raise self._refused(error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.rename(self.path)
            sync_folder(self.path.parent)
        except OSError as failure:
            self._discard()
            raise self._refused(failure) from failure

    def _discard(self) -> None:
        with suppress(OSError):  # close() flushes again, and on a full disk it fails again
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> ShardError:
        return ShardError(
            f"{self.path}: cannot be written ({error.strerror}); "
            "free or choose another place, then run the same command again"
        )


def remove_tree(folder: Path) -> None:
    """Remove a folder with everything in it. Does nothing if the folder does not exist.

    Raises:
        ShardError: The file system fails.
    """
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise ShardError(
            f"{folder}: cannot be removed ({error.strerror}); remove it, then run the same command "
            "again"
        ) from error


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` against all other processes, then remove it.

    Folders that were created for the lock file are removed too if they are empty. The lock of a
    killed process is released.

    Raises:
        ShardError: Another process holds the lock, or the file system fails.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path)
    except OSError as error:
        raise ShardError(
            f"{path}: cannot be locked ({error.strerror}); choose another place"
        ) from error
    if descriptor is None:
        raise ShardError(f"{path}: another process is at work here; wait until it has ended")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _locked(path: Path) -> int | None:
    """Return a locked descriptor of the file `path`, or None if another process holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have removed the file after it was opened here.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Return whether this is the name of a temporary file that a killed `AtomicFile` left."""
    return name.startswith(".") and name.endswith(".tmp")


def remove_temporaries(path: Path) -> None:
    """Remove the temporary files that killed processes left for `path`. No writer may be running.

    Raises:
        ShardError: The file system fails.
    """
    start = _temporary_start(path)
    try:
        for found in path.parent.iterdir():
            if found.name.startswith(start) and is_temporary(found.name):
                found.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ShardError(
            f"{path.parent}: cannot be cleared of temporary files ({error.strerror}); mend that, "
            "then run the same command again"
        ) from error


def _temporary_start(path: Path) -> str:
    return f".{path.name}."


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
