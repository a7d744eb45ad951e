"""A folder in object storage that a shard set is written to.

An object is written by one request, so nobody ever reads half of one. It is never renamed.
"""

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from shards.errors import ShardError
from shards.location import Location
from shards.retries import is_final

_Result = TypeVar("_Result")


class ObjectStore(Location):
    """Reads and writes the objects of one folder at an fsspec URL. Safe for several threads."""

    def write(self, name: str, data: bytes) -> None:
        """Write an object, or replace it.

        Raises:
            ShardError: The storage cannot be written.
        """
        self._written(name, lambda path: self._fs.pipe_file(path, data))

    def upload(self, source: Path, name: str) -> None:
        """Write an object with the content of a local file.

        Raises:
            ShardError: The storage cannot be written.
        """
        self._written(name, lambda path: self._fs.put_file(str(source), path))

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the storage.

        Raises:
            ShardError: There is no such object, or the storage cannot be written.
        """
        start = self._path(source)
        self._written(target, lambda path: self._fs.cp_file(start, path))

    def remove(self, names: Collection[str]) -> None:
        """Remove objects, many with one request. Those that do not exist are left out.

        Raises:
            ShardError: The storage cannot be written.
        """
        paths = [self._path(name) for name in names]
        with contextlib.suppress(FileNotFoundError):
            if paths:
                self._written("", lambda _: self._fs.rm(paths))

    def matching(self, pattern: str) -> list[str]:
        """Return the paths within this folder of the objects that match a pattern with `*`.

        Raises:
            ShardError: The storage cannot be read.
        """
        found = self._try(pattern, lambda path: self._fs.glob(path))
        return [path[len(self._root) + 1 :] for path in found]

    def exchange(self, name: str, before: bytes | None, data: bytes) -> bool:
        """Write an object if it still has the content that it had.

        On S3 the storage itself compares, so of two writers one wins. Elsewhere a new object is
        created so, where the file system can, and a replaced one is read again just before it is
        written.

        Args:
            name: The path of the object within the folder.
            before: The content that it must have; None if it must not exist.
            data: The new content.

        Returns:
            Whether the object has the new content now.

        Raises:
            ShardError: The storage cannot be written.
        """
        return self._written(name, lambda path: _exchange(self._fs, path, before, data))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _written(self, name: str, request: Callable[[str], _Result]) -> _Result:
        try:
            return self._try(name, request)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._unwritable(name, error) from error
        except ShardError as error:
            raise self._unwritable(name, error.__cause__ or error) from error

    def _unwritable(self, name: str, error: BaseException) -> ShardError:
        where = f"{self}/{name}" if name else str(self)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        often = "" if isinstance(error, Exception) and is_final(error) else ", after several tries"
        return ShardError(
            f"{where}: cannot be written ({reason}); check the address, the connection and the "
            f"credentials{often}, then run the same command again"
        )


def _exchange(fs: fsspec.AbstractFileSystem, path: str, before: bytes | None, data: bytes) -> bool:
    if before is None:
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            # The answer to an attempt that succeeded may have been lost.
            return bytes(fs.cat_file(path)) == data
        return True
    found: dict[str, Any] = fs.info(path)
    now = bytes(fs.cat_file(path))
    if now != before:
        return now == data
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    if protocol != "s3":
        fs.pipe_file(path, data)
        return True
    bucket, key, _ = fs.split_path(path)
    try:
        fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=found["ETag"])
    except Exception as error:
        if not _is_precondition(error):
            raise
        return bytes(fs.cat_file(path)) == data
    fs.invalidate_cache(path)
    return True


def _is_precondition(error: Exception) -> bool:
    """Return whether S3 refused a write because the object has changed (HTTP 412 or 409)."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in (409, 412)
