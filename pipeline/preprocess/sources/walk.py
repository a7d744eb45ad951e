"""Finds the files below a folder, local or by any fsspec URL, one directory at a time."""

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec

from pipeline.preprocess.sources.s3_listing import list_folders, lists_ranges
from shards.parallel import in_order

# Files that operating systems leave in folders. They are not samples.
IGNORED_NAMES = frozenset({b"Thumbs.db", b"desktop.ini"})
FOLDERS_AT_ONCE = 16


class File(NamedTuple):
    """A file below a root, or an entry that can never be a sample.

    Attributes:
        path: The path below the root, separated by `/`.
        size: The size in bytes; -1 if the file system does not report it.
        mtime: A text that changes when the file is written again. Its form depends on the file
            system.
        reason: Why the file cannot be used, or None.
    """

    path: bytes
    size: int
    mtime: str
    reason: str | None


def walk(
    filesystem: Any, base: str, folders: list[bytes] | None = None, *, deep: bool = True
) -> Iterator[File]:
    """Yield the files below `base` in no particular order.

    Hidden files and those in `IGNORED_NAMES` are left out. Links are followed only to files below
    `base`. What is neither a file nor a folder is never opened. On this machine, one folder is read
    at a time, and its names are not held. Elsewhere `FOLDERS_AT_ONCE` are listed at a time.

    Args:
        filesystem: An fsspec file system.
        base: The path of the folder there.
        folders: The folders to list, below `base`; None for `base` itself. Afterwards, the folders
            that were found in them and not listed.
        deep: Whether to list the folders in them, too.
    """
    folders = [b""] if folders is None else folders
    later: list[bytes] = []
    real_root = os.path.realpath(os.fsencode(base)) if is_local(filesystem) else b""
    while folders:
        found: list[bytes] = []
        if is_local(filesystem):
            yield from _walk_local(os.fsencode(base), real_root, folders.pop(), found)
        else:
            some = [folders.pop() for _ in folders[:FOLDERS_AT_ONCE]]
            yield from _walk_remote(filesystem, base.rstrip("/"), some, found)
        if deep:
            folders += found
        else:
            later += found
    folders += later


def is_local(filesystem: Any) -> bool:
    """Return whether the file system is this machine's own."""
    return isinstance(filesystem, fsspec.implementations.local.LocalFileSystem)


def _passed_over(name: bytes) -> bool:
    return name.startswith(b".") or name in IGNORED_NAMES


def _walk_local(root: bytes, real_root: bytes, folder: bytes, found: list[bytes]) -> Iterator[File]:
    try:
        with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118 - bytes
            for entry in entries:
                if _passed_over(entry.name):
                    continue
                path = folder + b"/" + entry.name if folder else entry.name
                if entry.is_symlink():
                    yield _linked(path, entry.path, real_root)
                elif entry.is_dir(follow_symlinks=False):
                    found.append(path)
                else:
                    yield _local_file(path, entry)
    except OSError as error:
        yield File(folder, 0, "", f"its folder cannot be read: {os.strerror(error.errno or 0)}")


def _local_file(path: bytes, entry: os.DirEntry[bytes]) -> File:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError as error:
        return File(path, 0, "", f"cannot be read: {os.strerror(error.errno or 0)}")
    if not stat.S_ISREG(found.st_mode):
        return File(path, 0, "", special_reason(found.st_mode))
    return File(path, found.st_size, str(found.st_mtime_ns), None)


def _linked(path: bytes, link: bytes, real_root: bytes) -> File:
    """Return the file that a symbolic link leads to, if it lies below the root."""
    target = os.path.realpath(link)
    if not target.startswith(real_root.rstrip(b"/") + b"/"):
        return File(path, 0, "", "a link that leads out of the folder")
    try:
        found = os.stat(link)  # noqa: PTH116 - bytes
    except OSError as error:
        loop = error.errno == errno.ELOOP
        return File(path, 0, "", "a link to itself" if loop else "a link to nothing")
    if stat.S_ISDIR(found.st_mode):
        return File(path, 0, "", "a link to a folder; its files are listed in their own place")
    if not stat.S_ISREG(found.st_mode):
        return File(path, 0, "", special_reason(found.st_mode))
    return File(path, found.st_size, str(found.st_mtime_ns), None)


def special_reason(mode: int) -> str:
    """Return why something that is not a regular file is refused, by its mode."""
    kinds = ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISDIR, "folder"))
    kind = next((name for check, name in kinds if check(mode)), "device")
    return f"a {kind}, not a file"


def _walk_remote(
    filesystem: Any, base: str, folders: list[bytes], found: list[bytes]
) -> Iterator[File]:
    full_paths = [f"{base}/{os.fsdecode(folder)}" if folder else base for folder in folders]
    for folder, info in _listed(filesystem, full_paths):
        full = info["name"].rstrip("/")
        name = os.fsencode(full[len(folder) + 1 :])
        # Object stores list a folder's own marker among its files.
        if full == folder or not name or _passed_over(name):
            continue
        path = os.fsencode(full[len(base) + 1 :])
        if info["type"] == "directory":
            found.append(path)
        elif info["type"] != "file":
            yield File(path, 0, "", f"{info['type']}, not a file")
        else:
            size = info.get("size")
            yield File(path, -1 if size is None else int(size), changed(info), None)


def _listed(filesystem: Any, folders: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what some folders hold, with the folder of each."""
    filesystem.invalidate_cache()
    if lists_ranges(filesystem) and all(folders):
        yield from list_folders(filesystem, folders)
        return

    def listed(folder: str) -> list[dict[str, Any]]:
        infos: list[dict[str, Any]] = filesystem.ls(folder, detail=True)
        filesystem.invalidate_cache(folder)
        return infos

    for folder, infos in zip(folders, in_order(listed, folders), strict=True):
        yield from ((folder, info) for info in infos)


def changed(info: dict[str, Any]) -> str:
    """Return what the file system reports about a file's last change."""
    keys = ("mtime", "LastModified", "last_modified", "updated", "created", "ETag")
    return str(next((info[key] for key in keys if info.get(key)), ""))
