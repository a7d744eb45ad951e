"""Opens files on this machine's disks without waiting, and reads them with limits."""

import os
import stat
from collections.abc import Callable
from typing import BinaryIO

from pipeline.media.errors import MediaError
from pipeline.preprocess.sources.walk import special_reason

OUTSIDE = "lies outside the listing's folder; data.allow names what else may be read"
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_AT_ONCE = 64 << 20


def open_regular(path: str, within: Callable[[str], bool] | None = None) -> BinaryIO:
    """Open a regular file. A pipe, a device or a folder is refused, without waiting for it.

    Args:
        path: An absolute path.
        within: Decides whether the file may be read. It gets the path of the opened file without
            links.

    Returns:
        The file, open for reading bytes.

    Raises:
        MediaError: It is not a regular file, or may not be read.
        OSError: It cannot be opened.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except ValueError as error:  # the name has a NUL
        raise MediaError("no such name") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise MediaError(special_reason(found.st_mode))
        if within is not None and not _is_within(descriptor, path, within):
            raise MediaError(OUTSIDE)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _is_within(descriptor: int, path: str, within: Callable[[str], bool]) -> bool:
    """Ask about the file that is open, even if its name now means another file."""
    try:
        if within(os.readlink(f"/proc/self/fd/{descriptor}")):  # noqa: PTH115 - bytes of any name
            return True
    except OSError:  # not Linux
        pass
    real = os.path.realpath(path)
    try:
        return within(real) and os.path.samestat(os.fstat(descriptor), os.lstat(real))
    except OSError:
        return False


def read_regular(file: BinaryIO, max_bytes: int) -> bytes:
    """Read all of an open file. Stop if it is too large or grows beyond the limit.

    Raises:
        MediaError: It has more than `max_bytes`.
    """
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    check_size(size, max_bytes)
    chunks, total, wanted = [], 0, min(size + 1, _AT_ONCE)
    while chunk := os.read(descriptor, wanted):
        chunks.append(chunk)
        total += len(chunk)
        check_size(total, max_bytes)
        wanted = min(max(size - total, 1 << 16), max_bytes + 1 - total, _AT_ONCE)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def read_range(file: BinaryIO, offset: int, length: int) -> bytes:
    """Read a range of an open file.

    Args:
        file: The open file.
        offset: The first byte of the range.
        length: The number of bytes.

    Returns:
        The bytes; fewer if the file ends before.
    """
    descriptor = file.fileno()
    left = min(length, max(os.fstat(descriptor).st_size - offset, 0))
    chunks = []
    while left and (chunk := os.pread(descriptor, min(left, _AT_ONCE), offset)):
        chunks.append(chunk)
        offset += len(chunk)
        left -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def check_size(size: int, max_bytes: int) -> None:
    """Refuse a file that is too large.

    Raises:
        MediaError: `size` is more than `max_bytes`.
    """
    if size > max_bytes:
        raise MediaError(f"{size} bytes, more than {max_bytes} (data.max_file_bytes)")
