"""The files of a sample: where they lie, and reading them."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.config.addresses import is_web
from pipeline.media.errors import MediaError
from pipeline.preprocess.sources.addresses import filesystem_of
from pipeline.preprocess.sources.local_files import (
    check_size,
    open_regular,
    read_range,
    read_regular,
)
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.walk import is_local
from pipeline.preprocess.sources.web import fetch
from shards.redaction import redacted
from shards.retries import Retry, try_again

BUFFER_BYTES = 1 << 20
REQUEST_BYTES = 16 << 20
"""The most bytes of one request over a network; less than `web_answers.MAX_ANSWER_BYTES`."""
RETRY = Retry(attempts=4, first_delay=0.5)


@dataclass(frozen=True)
class SourceFile:
    """One file of a sample, or a range of a tar.

    Attributes:
        field: A modality, `mask` or `target`.
        path: A path below the split's root, an absolute path, or a URL. It holds no secret.
        offset: The offset of a tar's member in bytes; None for a whole file.
        length: The length of a tar's member in bytes; None for a whole file.
        size: The size in bytes; -1 if unknown until it is read.
        mtime: The time of the last change, as the file system reports it.
        address: The address to read instead of the path, if it holds a secret. It is never written.
    """

    field: str
    path: str
    offset: int | None
    length: int | None
    size: int
    mtime: str
    address: str | None = None

    @classmethod
    def of(cls, values: dict[str, Any]) -> "SourceFile":
        """Make a file from a value of the source table's column `parts`, where paths are bytes."""
        address = values.get("address")
        paths = {
            "path": os.fsdecode(values["path"]),
            "address": None if address is None else os.fsdecode(address),
        }
        return cls(**{**values, **paths})


def part_file(reach: Reach, part: SourceFile) -> tuple[Any, str]:
    """Return the file system that holds a file, and its path there, with what gives access to it.

    Args:
        reach: What the file's split may read.
        part: The file.

    Raises:
        MediaError: The file may not be read.
        ValueError: There is no such protocol.
        ImportError: The protocol's package is missing.
    """
    return reach.resolve(part.address or part.path)


def read_part(reach: Reach, part: SourceFile) -> bytes:
    """Read a file. Errors of a network are retried, unless the file may not be read.

    Args:
        reach: What the file's split may read.
        part: The file.

    Returns:
        All bytes of the file, or of its range of a tar.

    Raises:
        MediaError: The file may not be read, is too large, is not a regular file, or cannot be read
            over the network.
        OSError: The file cannot be read from a local disk.
    """
    if part.length is not None:
        check_size(part.length, reach.max_file_bytes)
    try:
        filesystem, path = part_file(reach, part)
    except MediaError:
        raise
    except (ValueError, ImportError) as error:  # no such protocol, or no package for it
        raise MediaError(why_unreadable(error)) from error
    if is_local(filesystem):
        return _read_local(path, reach, part)
    try:
        return try_again(lambda: _read_far(filesystem, path, reach, part), RETRY)
    except MediaError:
        raise
    except Exception as error:  # each network library has its own exceptions
        raise MediaError(why_unreadable(error)) from error


def _read_local(path: str, reach: Reach, part: SourceFile) -> bytes:
    with open_regular(path, reach.holds if reach.confined else None) as file:
        if part.offset is None or part.length is None:
            return read_regular(file, reach.max_file_bytes)
        return _checked_range(read_range(file, part.offset, part.length), part.length)


def _read_far(filesystem: Any, path: str, reach: Reach, part: SourceFile) -> bytes:
    limit = reach.max_file_bytes
    if part.offset is not None and part.length is not None:
        if is_web(path):
            data = fetch(reach, path, part.offset, part.length)
        else:
            stop = part.offset + part.length
            data = filesystem.cat_file(path, start=part.offset, end=stop)
        return _checked_range(data, part.length, far=True)
    if is_web(path):
        return fetch(reach, path, None, None)
    size = filesystem.size(path)
    if size is None:
        with filesystem.open(path, "rb") as file:
            data = file.read(limit + 1)
    else:
        check_size(size, limit)
        data = filesystem.cat_file(path)
    check_size(len(data), limit)
    return data


def _checked_range(data: bytes, length: int, *, far: bool = False) -> bytes:
    """Check the length of a tar's member. Over a network a short answer is retried."""
    if len(data) == length:
        return data
    if len(data) > length:
        raise MediaError(f"more than the {length} bytes of a tar came that were asked for")
    reason = f"{len(data)} bytes came where {length} of a tar were asked for"
    raise _ShortError(reason) if far else MediaError(reason)


def exists(filesystem: Any, path: str) -> bool:
    """Return whether a file or folder exists. A server that does not answer does not mean "no".

    Raises:
        Exception: The network's library fails, even after several attempts.
    """
    if filesystem.exists(path):
        return True
    if is_local(filesystem):
        return False
    try:
        try_again(lambda: filesystem.cat_file(path, start=0, end=1), RETRY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except IsADirectoryError:
        pass
    return True


def is_folder(filesystem: Any, path: str) -> bool:
    """Return whether a folder exists. A server that fails is asked again.

    Raises:
        Exception: The network's library fails, even after several attempts.
    """
    return bool(try_again(lambda: filesystem.isdir(path), RETRY))


def retry_if_exists(filesystem: Any, path: str, request: Callable[[], Any]) -> Any:
    """Return the result of `request`, and retry it after errors if the file exists.

    Args:
        filesystem: The file system of the file.
        path: The path of the file there.
        request: The request, which takes no arguments.
    """

    def asked() -> Any:
        try:
            return request()
        except FileNotFoundError:  # over HTTP any failure may look like this
            if is_local(filesystem) or not exists(filesystem, path):
                raise
        return request()

    return try_again(asked, RETRY)


@contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """Open a file by its path or URL, as `opened_at` does."""
    with opened_at(*filesystem_of(source)) as file:
        yield file


@contextmanager
def opened_at(filesystem: Any, path: str) -> Iterator[BinaryIO]:
    """Open a file, to be read in order or by ranges. Errors of a network that may pass are retried.

    Raises:
        MediaError: It is a pipe, a device or a folder on this machine.
    """
    if is_local(filesystem):
        with open_regular(path) as file:
            yield file
        return
    options = {"block_size": BUFFER_BYTES, "cache_type": "readahead"}
    with (
        retry_if_exists(filesystem, path, lambda: filesystem.open(path, "rb", **options)) as file,
        io.BufferedReader(_RetryingFile(file), BUFFER_BYTES) as patient,
    ):
        yield patient


class _RetryingFile(io.RawIOBase):
    """A file on a network whose reads are retried."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any, /) -> int:
        start = self._file.tell()

        def read() -> bytes:
            self._file.seek(start)
            data: bytes = self._file.read(min(len(buffer), REQUEST_BYTES))
            return data

        data = try_again(read, RETRY)
        buffer[: len(data)] = data
        return len(data)


def read_errors(filesystem: Any) -> tuple[type[Exception], ...]:
    """Return what reading may raise. Network libraries have exceptions that are not `OSError`s."""
    return (OSError,) if is_local(filesystem) else (Exception,)


def why_unreadable(error: Exception) -> str:
    """Return why a network's library failed, in one line without paths."""
    if isinstance(error, _ShortError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    return f"cannot be read ({type(error).__name__})"


def redacted_line(error: Exception) -> str:
    """Return a network library's error in one line without secrets."""
    # It is redacted before it is cut, because half a password would not be recognised.
    text = redacted(" ".join(str(error).split()))
    text = text if len(text) <= 200 else f"{text[:199]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _ShortError(OSError):
    """An answer with fewer bytes than requested."""
