"""Looks up the files that a listing's row names, before any of them is opened."""

import os
import re
import stat
from typing import Any

from pipeline.media.errors import MediaError
from pipeline.preprocess.sources.addresses import named
from pipeline.preprocess.sources.local_files import OUTSIDE
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.walk import is_local, special_reason

UNKNOWN_SIZE = -1
_MAX_FOLDERS = 100_000
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
"""A name that no server reads as something else: without escapes, queries or steps upwards."""


class RowFiles:
    """Finds the files of rows.

    Args:
        reach: What the rows may name.
    """

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self._far_folders: dict[bytes, bool] = {}
        self._real_folders: dict[str, str] = {}

    def named(self, path: bytes) -> bytes:
        """Return a path without secrets."""
        if (b"?" not in path and b"://" not in path) or self._is_far(path):
            return path
        return os.fsencode(named(os.fsdecode(path), self.reach.root))

    def parts(self, paths: dict[str, bytes | None]) -> tuple[list[dict[str, Any]], str | None]:
        """Return the files of a row, and the reason if one cannot be used.

        Args:
            paths: The path of each field, or None if the row has none.
        """
        parts: list[dict[str, Any]] = []
        for field, path in paths.items():
            if path is None:
                continue
            if self._is_far(path):
                parts.append(_part(field, path, UNKNOWN_SIZE, "", None))
                continue
            try:
                size, mtime = self._look_up(os.fsdecode(path))
            except MediaError as error:
                return parts, f"{field}: {error}"
            except OSError as error:
                return parts, f"{field}: {os.strerror(error.errno or 0)}"
            name = self.named(path)
            parts.append(_part(field, name, size, mtime, None if name == path else path))
        return parts, None

    def _is_far(self, path: bytes) -> bool:
        """Return whether a path is a plain name in a folder at a URL, which may be read.

        What holds for the folder then holds for the file. The answer is kept, since many rows share
        a folder. Any other path is looked up by itself.
        """
        folder, _, name = path.rpartition(b"/")
        if b"://" not in folder or b"?" in folder or _PLAIN_NAME.fullmatch(name) is None:
            return False
        if folder not in self._far_folders:
            if len(self._far_folders) >= _MAX_FOLDERS:
                self._far_folders.clear()
            self._far_folders[folder] = self._may_be_read(folder)
        return self._far_folders[folder]

    def _may_be_read(self, folder: bytes) -> bool:
        if self.named(folder) != folder:  # it holds a secret
            return False
        try:
            filesystem, _ = self.reach.resolve(os.fsdecode(folder))
        except (MediaError, ValueError, ImportError):
            return False
        return not is_local(filesystem)

    def _look_up(self, path: str) -> tuple[int, str]:
        """Return the size and time of a local file; -1 and an empty text for a file on a network.

        Raises:
            MediaError: The file may not be read, or is not a regular file.
            OSError: The disk does not have the file.
        """
        try:
            filesystem, full = self.reach.resolve(path)
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
        """Refuse a path that may not be read, whether the file exists or not.

        Raises:
            MediaError: The path lies outside the allowed folders, or leads outside by links.
        """
        folder, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            folder, name = path, ""
        real_path = f"{self._real_folder(folder).rstrip('/')}/{name}".rstrip("/") or "/"
        if self.reach.holds(real_path) and name and stat.S_ISLNK(os.lstat(path).st_mode):
            real_path = os.path.realpath(path)
        if not self.reach.holds(real_path):
            raise MediaError(OUTSIDE)

    def _real_folder(self, folder: str) -> str:
        """Return a folder's path without links. It is cached, since many rows share a folder."""
        if folder not in self._real_folders:
            if len(self._real_folders) >= _MAX_FOLDERS:
                self._real_folders.clear()
            self._real_folders[folder] = os.path.realpath(folder or "/")
        return self._real_folders[folder]


def _part(field: str, path: bytes, size: int, mtime: str, address: bytes | None) -> dict[str, Any]:
    return {
        "field": field,
        "path": path,
        "offset": None,
        "length": None,
        "size": size,
        "mtime": mtime,
        "address": address,
    }
