"""Files of a local shard set: regular files in the set's own folder, of limited size."""

import errno
import mmap
import os
import stat
from pathlib import Path

from shards.errors import ShardError

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def open_file(folder: Path, name: str) -> int:
    """Open the regular file `name` in `folder` for reading. Return its descriptor.

    Neither the file nor a folder in `name` may be a symbolic link, which could lead anywhere; but
    `folder` may be one. A pipe or a device is rejected without waiting for it.

    Args:
        folder: The folder of the set.
        name: The path of the file within the set, with '/' between names.

    Raises:
        FileNotFoundError: The file does not exist.
        ShardError: It is a link, a pipe, a device or a folder, or `name` leads out of the folder.
        OSError: The file system fails.
    """
    *folders, last = parts = name.split("/")
    if not all(parts) or not {".", ".."}.isdisjoint(parts) or "\0" in name:
        raise ShardError(f"{folder}: {name!r} is no path within the set; do not use this set")
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        for part in folders:
            descriptor = _within(descriptor, part, _READ | os.O_DIRECTORY)
        facts = os.stat(last, dir_fd=descriptor, follow_symlinks=False)
        if not stat.S_ISREG(facts.st_mode):  # to open a device may already have an effect
            raise _not_regular(folder / name)
        descriptor = _within(descriptor, last, _READ)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_regular(folder / name)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _not_regular(folder / name) from error
        raise
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_file(folder: Path, name: str, max_bytes: int) -> bytes:
    """Read a whole file. Raises like `open_file`, and ShardError above `max_bytes` bytes."""
    with os.fdopen(open_file(folder, name), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise too_large(f"{folder / name}", max_bytes)
        return file.read(size)  # a larger number would be allocated


def read_file_range(folder: Path, name: str, start: int, stop: int) -> bytes:
    """Read bytes [start, stop) of a file, fewer if it ends earlier. Raises like `open_file`."""
    with os.fdopen(open_file(folder, name), "rb") as file:
        file.seek(start)
        return file.read(stop - start)


def map_file(folder: Path, name: str) -> memoryview:
    """Map a whole file into memory, read-only. Raises like `open_file`."""
    descriptor = open_file(folder, name)
    try:
        if not os.fstat(descriptor).st_size:
            return memoryview(b"")  # an empty file cannot be mapped
        return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)


def too_large(where: str, max_bytes: int) -> ShardError:
    """Return the error for a file with more bytes than such a file can need."""
    return ShardError(
        f"{where}: has more than {max_bytes} bytes, which no such file needs; restore it or run "
        "'perceiver preprocess' again"
    )


def _within(folder: int, name: str, flags: int) -> int:
    """Open a file in the folder with this descriptor. Close the folder's descriptor."""
    opened = os.open(name, flags, dir_fd=folder)
    os.close(folder)
    return opened


def _not_regular(path: Path) -> ShardError:
    return ShardError(
        f"{path}: is a folder, a link, a pipe or a device, or lies behind a link; the files of a "
        "set are regular files in its own folder: put a copy in its place"
    )
