"""Files that appear whole or not at all, and survive a power cut once they have appeared."""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from shards.errors import ShardError

_BUFFER_BYTES = 1 << 20


class AtomicFile:
    """Writes `path` under a temporary name beside it; leaving the `with` block renames it.

    An exception inside the block removes the temporary file and leaves `path` as it was. A process
    killed inside it leaves a temporary file, which `is_temporary` recognises.

    Raises:
        ShardError: the file system refuses: disk full, no permission. Exceptions that the caller's
            own code raises inside the block pass through unchanged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise self._refused(error) from error
        return self

    def write(self, data: bytes) -> int:
        """Appends `data`; the number of bytes written."""
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
        with suppress(OSError):  # close() flushes again, and a full disk refuses again
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> ShardError:
        return ShardError(
            f"{self.path}: cannot be written ({error.strerror}); "
            "free or choose another place, then run the same command again"
        )


def is_temporary(name: str) -> bool:
    """Whether a file of this name is what a killed `AtomicFile` leaves behind."""
    return name.startswith(".") and name.endswith(".tmp")


def sync_folder(folder: Path) -> None:
    """Makes renames within `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
