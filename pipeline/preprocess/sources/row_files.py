"""The files that a listing's row names: looked up before any of them is opened."""

import os
import stat
from typing import Any

from pipeline.media.errors import MediaError
from pipeline.preprocess.sources.addresses import named
from pipeline.preprocess.sources.local_files import OUTSIDE
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.walk import is_local, special_reason

UNKNOWN_SIZE = -1
_MAX_FOLDERS = 100_000


class RowFiles:
    """Finds the files of rows.

    Args:
        reach: what rows may name.
    """

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._real_folders: dict[str, str] = {}

    def named(self, path: bytes) -> bytes:
        """A path without secrets."""
        if b"?" not in path and b"://" not in path:
            return path
        return os.fsencode(named(os.fsdecode(path), self._reach.root))

    def parts(self, paths: dict[str, bytes | None]) -> tuple[list[dict[str, Any]], str | None]:
        """The files of a row, by field, and why one cannot be used."""
        parts: list[dict[str, Any]] = []
        for field, path in paths.items():
            if path is None:
                continue
            try:
                size, mtime = self._look_up(os.fsdecode(path))
            except MediaError as error:
                return parts, f"{field}: {error}"
            except OSError as error:
                return parts, f"{field}: {os.strerror(error.errno or 0)}"
            name = self.named(path)
            parts.append(
                {"field": field, "path": name, "offset": None, "length": None,
                 "size": size, "mtime": mtime, "address": None if name == path else path}
            )  # fmt: skip
        return parts, None

    def _look_up(self, path: str) -> tuple[int, str]:
        """Size and time of a file, where this machine's disks tell them.

        Raises:
            MediaError: it may not be read, or is no regular file.
            OSError: the disk does not have it.
        """
        try:
            filesystem, full = self._reach.place(path)
        except MediaError:
            raise
        except (ValueError, ImportError) as error:
            raise MediaError(f"cannot be read ({type(error).__name__})") from error
        if not is_local(filesystem):
            return UNKNOWN_SIZE, ""
        if "\0" in full:
            raise MediaError("no such name")
        self._check(full)
        found = os.stat(full)  # noqa: PTH116 - any name
        if not stat.S_ISREG(found.st_mode):
            raise MediaError(special_reason(found.st_mode))
        return found.st_size, str(found.st_mtime_ns)

    def _check(self, path: str) -> None:
        """Refuse what may not be read, whether it is there or not.

        Raises:
            MediaError: it lies, or leads by links, outside.
        """
        folder, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            folder, name = path, ""
        place = f"{self._real_folder(folder).rstrip('/')}/{name}".rstrip("/") or "/"
        if self._reach.holds(place) and name and stat.S_ISLNK(os.lstat(path).st_mode):
            place = os.path.realpath(path)
        if not self._reach.holds(place):
            raise MediaError(OUTSIDE)

    def _real_folder(self, folder: str) -> str:
        """A folder without links; remembered, since many rows share it."""
        if folder not in self._real_folders:
            if len(self._real_folders) >= _MAX_FOLDERS:
                self._real_folders.clear()
            self._real_folders[folder] = os.path.realpath(folder or "/")
        return self._real_folders[folder]
