"""The location of a shard set: a local folder, or a folder at any fsspec URL."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Never, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shards.errors import ShardError
from shards.retries import Retry, is_final, try_again
from shards.set_files import open_file, read_file, read_file_range, too_large

_Result = TypeVar("_Result")

_MAX_CONNECTIONS = 64
"""Whole shards, ranges and indexes are requested on 16 threads each."""

_NOT_THERE = (FileNotFoundError, NotADirectoryError)


class Location:
    """Read the files of one folder by their paths within it.

    A request to a remote folder is repeated if its failure may be temporary: no connection, a
    time-out, HTTP 408, 425, 429 and 5xx. If a file stays unreadable, every method raises a
    ShardError that names the file. Safe for several threads.

    Args:
        path: A local folder or an fsspec URL.
        retry: How often to try a remote request.

    Attributes:
        folder: The folder if it is local, else None.

    Raises:
        ShardError: The URL is invalid, or the package that reads it is not installed.
    """

    def __init__(self, path: str | Path, retry: Retry | None = None) -> None:
        self.retry = retry or Retry()
        self._given = str(path)
        self._process = os.getpid()
        try:
            self._opened, root = filesystem_of(self._given)
        except (ValueError, ImportError) as error:
            raise ShardError(
                f"{self._given}: cannot be opened ({_one_line(error)}); correct the URL or install "
                "the package that reads it"
            ) from error
        self._root: str = root.rstrip("/")
        self.folder = Path(root) if isinstance(self._opened, LocalFileSystem) else None

    def __str__(self) -> str:
        return self._given

    def exists(self, name: str = "") -> bool:
        """Return whether the file or folder `name` exists; by default, the folder itself."""
        return self._try(name, lambda path: bool(self._fs.exists(path)))

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: The file does not exist.
            ShardError: The file has more than `max_bytes` bytes.
        """
        if (folder := self.folder) is not None:
            return self._try(name, lambda _: read_file(folder, name, max_bytes))
        data = self._try(name, lambda path: self._fs.cat_file(path, start=0, end=max_bytes + 1))
        if len(data) > max_bytes:
            raise too_large(f"{self}/{name}", max_bytes)
        return data

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Read bytes [start, stop) of a file, fewer if it ends earlier.

        Args:
            name: The path of the file within the folder.
            start: The offset of the first byte.
            stop: The offset after the last byte.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        if (folder := self.folder) is not None:
            return self._try(name, lambda _: read_file_range(folder, name, start, stop))
        return self._try(name, lambda path: self._fs.cat_file(path, start=start, end=stop))

    def read_exactly(self, name: str, start: int, stop: int) -> bytes:
        """Read bytes [start, stop) of a file in one request. A short answer is requested again.

        Args:
            name: The path of the file within the folder.
            start: The offset of the first byte.
            stop: The offset after the last byte.

        Raises:
            FileNotFoundError: The file does not exist.
            ShardError: The file ends before `stop`, or the server does not support ranges.
        """

        def read(path: str) -> bytes:
            data: bytes = self._fs.cat_file(path, start=start, end=stop)
            if len(data) < stop - start:
                raise _ShortError(f"cut short: {len(data)} bytes of {stop - start} at byte {start}")
            return data

        data = self._try(name, read)
        if len(data) > stop - start:
            raise ShardError(
                f"{self}/{name}: the server gave {len(data)} bytes for a range of {stop - start}, "
                "so it knows no ranges; copy the set to one that does, or to a local folder"
            )
        return data

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading from start to end.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        if (folder := self.folder) is not None:
            return self._try(name, lambda _: os.fdopen(open_file(folder, name), "rb"))
        return self._try(name, lambda path: self._fs.open(path, "rb"))

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return the size of each file below a folder, by its path within this one.

        Links in a local folder are left out.
        """
        if (folder := self.folder) is not None:
            return self._try(below, lambda path: dict(_sizes_below(folder, Path(path))))
        try:
            found = self._try(below, lambda path: self._fs.find(path, detail=True))
        except _NOT_THERE:
            return {}
        start = len(self._root) + 1
        return {path[start:]: int(facts["size"]) for path, facts in found.items()}

    def names(self) -> set[str]:
        """Return the paths of all files below the folder. A local one includes empty folders."""
        if self.folder is not None:
            return self._try("", lambda root: set(_names_below(Path(root))))
        paths = self._try("", self._fs.find)
        return {path[len(self._root) + 1 :] for path in paths}

    @property
    def _fs(self) -> fsspec.AbstractFileSystem:
        """The file system. A forked process opens its own, since connections cannot be shared."""
        if self._process != os.getpid():
            self._opened, _ = filesystem_of(self._given)
            self._process = os.getpid()
        return self._opened

    def _try(self, name: str, request: Callable[[str], _Result]) -> _Result:
        path = f"{self._root}/{name}".rstrip("/")
        retry = Retry(attempts=1) if self.folder else self.retry
        try:
            return try_again(lambda: request(path), retry)
        except (*_NOT_THERE, ShardError):
            raise
        except Exception as error:  # each file system and network library has its own errors
            attempts = 1 if is_final(error) else retry.attempts
            raise self._unreadable(name, error, attempts) from error

    def _unreadable(self, name: str, error: Exception, attempts: int) -> ShardError:
        where = f"{self}/{name}" if name else str(self)
        times = f" after {attempts} attempts" if attempts > 1 else ""
        return ShardError(
            f"{where}: cannot be read{times} ({_one_line(error)}); "
            "check that it is whole, can be reached and may be read, then try again"
        )


def filesystem_of(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system that holds a folder, and the folder's path in it.

    Listings of a URL are not cached, because other machines write there, too.
    """
    if "://" in path:
        return fsspec.core.url_to_fs(path, use_listings_cache=False, **connection_options(path))
    # In a local name, fsspec would take the part before `::` as a protocol.
    return LocalFileSystem(), str(Path(path).expanduser().absolute())


def connection_options(url: str) -> dict[str, Any]:
    """Return the options of a URL's file system that let it have many requests at a time.

    For S3, botocore's own limit is 10 connections.
    """
    protocol = url.partition("://")[0]
    if protocol not in ("s3", "s3a") or "config_kwargs" in fsspec.config.conf.get(protocol, {}):
        return {}
    return {"config_kwargs": {"max_pool_connections": _MAX_CONNECTIONS}}


def _names_below(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root, onerror=_raise):
        below = Path(folder).relative_to(root)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (str(below / name) for name in [*files, *links])
        if not folders and not files and below != Path():
            yield str(below)


def _sizes_below(root: Path, below: Path) -> Iterator[tuple[str, int]]:
    for folder, _, files in os.walk(below):
        for name in files:
            path = Path(folder) / name
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode):
                yield str(path.relative_to(root)), facts.st_size


def _raise(error: OSError) -> Never:
    raise error


class _ShortError(OSError):
    """An answer has fewer bytes than requested."""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
