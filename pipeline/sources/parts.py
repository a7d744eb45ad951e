"""A sample's files: where they lie, and reading them."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.media.errors import MediaError
from pipeline.sources.walk import is_local
from shards.retries import Retry, try_again

MAX_FILE_BYTES = 2 * 1024**3
BUFFER_BYTES = 1 << 20
RETRY = Retry(attempts=4, first_delay=0.5)


@dataclass(frozen=True)
class Part:
    """One file of a sample, or a range of a tar.

    Attributes:
        field: modality, ``mask`` or ``target``.
        path: below the split's root; or absolute, or a URL. See `part_file`.
        offset, length: of a tar's member, in bytes; None for a whole file.
        size: bytes; -1 where only reading it will tell.
        mtime: what the file system told of its last change.
    """

    field: str
    path: str
    offset: int | None
    length: int | None
    size: int
    mtime: str

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Part":
        """A part of a listing's column ``parts``, where paths are bytes."""
        return cls(**{**values, "path": os.fsdecode(values["path"])})


def part_file(root: str, part: Part) -> tuple[Any, str]:
    """The file system that holds a part, and its path there.

    A local name may hold what would mean something in a URL.

    Args:
        root: of the part's split.
    """
    if "://" in part.path:
        return fsspec.core.url_to_fs(part.path)
    if part.path.startswith("/"):
        return LocalFileSystem(), part.path
    filesystem, base = fsspec.core.url_to_fs(root)
    return filesystem, f"{base.rstrip('/')}/{part.path}"


def read_part(root: str, part: Part) -> bytes:
    """A part's bytes; what fails otherwise than by not being there is tried again.

    Args:
        root: of the part's split.

    Raises:
        MediaError: it is too large, or a network does not give it.
        OSError: it cannot be read from this machine's own disks.
    """
    try:
        filesystem, path = part_file(root, part)
    except (ValueError, ImportError) as error:  # no such protocol, or its package is missing
        raise MediaError(why_unreadable(error)) from error
    try:
        return try_again(lambda: _read(filesystem, path, part), RETRY)
    except MediaError:
        raise
    except read_errors(filesystem) as error:
        if is_local(filesystem):
            raise
        raise MediaError(why_unreadable(error)) from error


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


def insist(filesystem: Any, path: str, request: Callable[[], Any]) -> Any:
    """What ``request`` gives of a file that is there; what may pass is tried again."""

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
    with opened_at(*fsspec.core.url_to_fs(source)) as file:
        yield file


@contextmanager
def opened_at(filesystem: Any, path: str) -> Iterator[BinaryIO]:
    """A file to be read in order or by ranges; what fails otherwise than finally is tried again."""
    options = {}
    if not is_local(filesystem):
        options = {"block_size": BUFFER_BYTES, "cache_type": "readahead"}
    with insist(filesystem, path, lambda: filesystem.open(path, "rb", **options)) as file:
        if is_local(filesystem):
            yield file
        else:
            with io.BufferedReader(_Patient(file), BUFFER_BYTES) as patient:
                yield patient


class _Patient(io.RawIOBase):
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
            data: bytes = self._file.read(len(buffer))
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


class _ShortError(OSError):
    """An answer with fewer bytes than asked for."""


def _read(filesystem: Any, path: str, part: Part) -> bytes:
    if part.offset is not None and part.length is not None:
        return _read_range(filesystem, path, part.offset, part.length)
    _check_size(_size(filesystem, path) if part.size < 0 else part.size)
    data: bytes = filesystem.cat_file(path)
    _check_size(len(data))
    return data


def _read_range(filesystem: Any, path: str, offset: int, length: int) -> bytes:
    """A member of a tar; over a network an answer cut short may be whole the next time."""
    _check_size(length)
    data: bytes = filesystem.cat_file(path, start=offset, end=offset + length)
    if len(data) == length:
        return data
    told = f"{len(data)} bytes came where {length} of a tar were asked for"
    if len(data) < length and not is_local(filesystem):
        raise _ShortError(told)
    raise MediaError(told)


def _size(filesystem: Any, path: str) -> int:
    """Bytes of a file; 0 where only reading it will tell."""
    try:
        return filesystem.size(path) or 0
    except FileNotFoundError:  # over HTTP whatever happened, which reading tells better
        return 0


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise MediaError(f"{size} bytes, more than {MAX_FILE_BYTES}")
