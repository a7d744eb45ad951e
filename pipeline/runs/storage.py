"""Files of run folders, written completely or not at all, on this machine or in object storage.

An object is written by one request, so nobody ever reads half of one. A request is repeated if its
failure may be temporary.
"""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from upath import UPath

from pipeline.config.folders import Folder, is_remote
from pipeline.errors import UserError
from shards.files import AtomicFile, remove_tree
from shards.retries import Retry, is_final, try_again
from shards.set_files import read_file, too_large

COPIED_BYTES = 1 << 20
_Result = TypeVar("_Result")
_ABSENT = (FileNotFoundError, NotADirectoryError)


def read_bytes(path: Folder, max_bytes: int) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: It does not exist.
        ShardError: It has more than `max_bytes` bytes, or is no regular file.
        UserError: The storage cannot be read.
    """
    if isinstance(path, Path):
        return read_file(path.parent, path.name, max_bytes)

    def request() -> bytes:
        try:
            return bytes(path.fs.cat_file(path.path, start=0, end=max_bytes + 1))
        except OSError as error:  # S3 has no range of an empty object
            if error.errno == errno.EINVAL and path.fs.size(path.path) == 0:
                return b""
            raise

    data = _try(path, "read", request)
    if len(data) > max_bytes:
        raise too_large(str(path), max_bytes)
    return data


def write_bytes(path: Folder, data: bytes) -> None:
    """Write a file, or replace it.

    Raises:
        ShardError: The local file system fails.
        UserError: The storage cannot be written.
    """
    if isinstance(path, Path):
        with AtomicFile(path) as file:
            file.write(data)
        return
    _try(path, "written", lambda: path.fs.pipe_file(path.path, data))


def create(path: Folder, data: bytes) -> bool:
    """Write a file that does not exist yet. Return whether this call has created it.

    Of several processes that create the same file, one succeeds.

    Raises:
        UserError: The storage cannot be written.
    """
    if isinstance(path, Path):
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        except OSError as error:
            raise unwritable(path, error) from error
        return True

    def request() -> bool:
        try:
            path.fs.pipe_file(path.path, data, mode="create")
        except FileExistsError:
            # The answer to an attempt that succeeded may have been lost.
            return bytes(path.fs.cat_file(path.path)) == data
        return True

    return _try(path, "written", request)


def upload(source: Path, path: Folder) -> None:
    """Copy a local file to a path, which it replaces.

    Raises:
        ShardError: The local file system fails.
        UserError: The storage cannot be written.
    """
    if isinstance(path, Path):
        with source.open("rb") as file, AtomicFile(path) as target:
            shutil.copyfileobj(file, target, COPIED_BYTES)
    else:
        _try(path, "written", lambda: path.fs.put_file(str(source), path.path))


def download(path: Folder, target: Path) -> None:
    """Copy a file to a local path.

    Raises:
        FileNotFoundError: It does not exist.
        UserError: The storage cannot be read.
    """
    if isinstance(path, Path):
        target.write_bytes(path.read_bytes())
    else:
        _try(path, "read", lambda: path.fs.get_file(path.path, str(target)))


@contextlib.contextmanager
def local_copy(path: Folder) -> Iterator[Path]:
    """Yield a local file with the content of a path: the file itself, or a temporary copy.

    Raises:
        UserError: The object does not exist or cannot be read.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="perceiver-copy-") as folder:
        copy = Path(folder) / path.name
        try:
            download(path, copy)
        except FileNotFoundError as error:
            raise _failed(path, "read", error) from None
        yield copy


@contextlib.contextmanager
def local_copies(folder: Folder, wanted: Iterable[str]) -> Iterator[Path]:
    """Yield a local folder with some files of a folder: the folder itself, or a temporary one.

    Files that do not exist are left out.

    Raises:
        UserError: The storage cannot be read.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="perceiver-copy-") as copies:
        for name in wanted:
            with contextlib.suppress(*_ABSENT):
                download(folder / name, Path(copies) / name)
        yield Path(copies)


@contextlib.contextmanager
def writable(path: Folder) -> Iterator[Path]:
    """Yield a local file to write. At the end of the block it is at the path.

    Raises:
        UserError: The storage cannot be written.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="perceiver-new-") as folder:
        yield Path(folder) / path.name
        upload(Path(folder) / path.name, path)


def names(folder: Folder, suffix: str = "") -> list[str]:
    """Return the names of the files directly in a folder that end in `suffix`, sorted.

    Raises:
        UserError: The storage cannot be read.
    """
    if isinstance(folder, Path):
        found = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    else:
        try:
            listed = _try(folder, "read", lambda: folder.fs.ls(folder.path, detail=False))
        except _ABSENT:
            listed = []
        found = [str(each).rstrip("/").rpartition("/")[2] for each in listed]
    return sorted(name for name in found if name.endswith(suffix))


def files_below(path: UPath) -> list[Folder]:
    """Return the object with this address, or all objects below it, sorted.

    Objects whose path below it has a part that begins with a dot are left out.

    Raises:
        UserError: The storage cannot be read.
    """
    try:
        found = _try(path, "read", lambda: path.fs.find(path.path))
    except _ABSENT:
        return []
    root = path.path.rstrip("/")
    below = (each.removeprefix(root).strip("/") for each in found)
    return [
        path / each if each else path
        for each in sorted(below)
        if not any(part.startswith(".") for part in each.split("/"))
    ]


def exists(path: Folder) -> bool:
    """Return whether there is such a file or folder."""
    if isinstance(path, Path):
        return path.exists()
    return _try(path, "read", lambda: bool(path.fs.exists(path.path)))


def make_folder(folder: Folder) -> None:
    """Make a local folder with its parents. Object storage has no folders to make."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def remove(path: Folder) -> None:
    """Remove a file, if it exists.

    Raises:
        UserError: The storage cannot be written.
    """
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(*_ABSENT):
        _try(path, "removed", lambda: path.fs.rm_file(path.path))


def remove_folder(folder: Folder) -> None:
    """Remove a folder with everything in it, if it exists.

    Raises:
        ShardError: The local file system fails.
        UserError: The storage cannot be written.
    """
    if isinstance(folder, Path):
        remove_tree(folder)
        return
    with contextlib.suppress(*_ABSENT):
        _try(folder, "removed", lambda: folder.fs.rm(folder.path, recursive=True))


def unwritable(path: Folder, error: Exception) -> UserError:
    """Return the error of a path that cannot be written."""
    return _failed(path, "written", error)


def _try(path: Folder, verb: str, request: Callable[[], _Result]) -> _Result:
    retry = Retry()
    try:
        return try_again(request, retry)
    except _ABSENT as error:
        # A missing bucket is no missing file.
        if verb == "written":
            raise _failed(path, verb, error) from error
        raise
    except Exception as error:  # each file system and network library has its own errors
        raise _failed(path, verb, error) from error


def _failed(path: Folder, verb: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    mend = "free or choose another place"
    if is_remote(path):
        often = "" if is_final(error) else ", after several attempts"
        mend = f"check the address, the connection and the credentials{often}"
    return UserError(f"{path}: cannot be {verb} ({reason[:300]}); {mend}")
