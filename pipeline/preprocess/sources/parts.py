"""A sample's files: where they lie, and reading them."""

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
"""Asked of a network at once: less than `web_answers.MAX_ANSWER_BYTES`."""
RETRY = Retry(attempts=4, first_delay=0.5)


@dataclass(frozen=True)
class SourceFile:
    """One file of a sample, or a range of a tar.

    Attributes:
        field: modality, `mask` or `target`.
        path: below the split's root; or absolute, or a URL. It holds no secret.
        offset, length: of a tar's member, in bytes; None for a whole file.
        size: bytes; -1 where only reading it will tell.
        mtime: what the file system told of its last change.
        address: what stands for the path where that holds a secret; never written.
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
        """A part of a listing's column `parts`, where paths are bytes."""
        address = values.get("address")
        paths = {
            "path": os.fsdecode(values["path"]),
            "address": None if address is None else os.fsdecode(address),
        }
        return cls(**{**values, **paths})


def part_file(reach: Reach, part: SourceFile) -> tuple[Any, str]:
    """The file system that holds a part, and its path there, with what gives access to it.

    Args:
        reach: of the part's split.

    Raises:
        MediaError: it lies where nothing may be read.
        ValueError: no such protocol.
        ImportError: the protocol's package is missing.
    """
    return reach.place(part.address or part.path)


def read_part(reach: Reach, part: SourceFile) -> bytes:
    """A part's bytes; what fails otherwise than by not being there is tried again.

    Args:
        reach: of the part's split.

    Raises:
        MediaError: it may not be read, it is too large or no regular file, or a network does not
            give it.
        OSError: it cannot be read from this machine's own disks.
    """
    if part.length is not None:
        check_size(part.length, reach.max_file_bytes)
    try:
        filesystem, path = part_file(reach, part)
    except MediaError:
        raise
    except (ValueError, ImportError) as error:  # no such protocol, or its package is missing
        raise MediaError(why_unreadable(error)) from error
    if is_local(filesystem):
        return _read_local(path, reach, part)
    try:
        return try_again(lambda: _read_far(filesystem, path, reach, part), RETRY)
    except MediaError:
        raise
    except Exception as error:  # networks' libraries have kinds of their own
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
    """A member of a tar; over a network an answer cut short may be whole the next time."""
    if len(data) == length:
        return data
    if len(data) > length:
        raise MediaError(f"more than the {length} bytes of a tar came that were asked for")
    told = f"{len(data)} bytes came where {length} of a tar were asked for"
    raise _ShortError(told) if far else MediaError(told)


def exists(filesystem: Any, path: str) -> bool:
    """Whether there is a file or folder; where a server only fails to answer, that is no "no".

    Raises:
        Exception: what the network's library says, after several attempts.
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
    """Whether there is a folder; a server that fails is asked again.

    Raises:
        Exception: what the network's library says, after several attempts.
    """
    return bool(try_again(lambda: filesystem.isdir(path), RETRY))


def retry_if_exists(filesystem: Any, path: str, request: Callable[[], Any]) -> Any:
    """What `request` gives of a file that is there; what may pass is tried again."""

    def asked() -> Any:
        try:
            return request()
        except FileNotFoundError:  # over HTTP whatever happened
            if is_local(filesystem) or not exists(filesystem, path):
                raise
        return request()

    return try_again(asked, RETRY)


@contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """A file, by path or URL; as `opened_at`."""
    with opened_at(*filesystem_of(source)) as file:
        yield file


@contextmanager
def opened_at(filesystem: Any, path: str) -> Iterator[BinaryIO]:
    """A file to be read in order or by ranges; what fails otherwise than finally is tried again.

    Raises:
        MediaError: it is a pipe, a device or a folder of this machine.
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
    """A file of a network whose reads are tried again."""

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
    """What reading may raise: the libraries of networks have exceptions that are no OSErrors."""
    return (OSError,) if is_local(filesystem) else (Exception,)


def why_unreadable(error: Exception) -> str:
    """A reason in one line that names no place, for what a network's library says."""
    if isinstance(error, _ShortError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    return f"cannot be read ({type(error).__name__})"


def redacted_line(error: Exception) -> str:
    """What a network's library says, in one line and without secrets."""
    text = redacted(" ".join(str(error).split()))  # before it is cut: of half a password none knows
    text = text if len(text) <= 200 else f"{text[:199]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _ShortError(OSError):
    """An answer with fewer bytes than asked for."""
