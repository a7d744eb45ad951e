"""Tars in a local folder: memory-mapped, with a bound on what is open."""

import mmap
import os
import resource
import weakref
from collections import OrderedDict
from pathlib import Path

import pyarrow as pa

from shards.errors import ShardError
from shards.raw_sample import Block
from shards.set_files import open_file

_MAX_OPEN = 8192

Extent = tuple[int, int]
"""(first, one past last) byte of a sample in its tar."""


def default_max_open() -> int:
    """A quarter of the files that this process may open, at most 8,192."""
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft_limit == resource.RLIM_INFINITY:
        return _MAX_OPEN
    return max(1, min(soft_limit // 4, _MAX_OPEN))


class LocalTars:
    """Maps tars when they are first read and lets the least recently used go.

    A map takes a file descriptor for as long as something holds a part of it. Where as many as
    allowed are held elsewhere, bytes are copied out of the tar instead, which takes none.

    Args:
        folder: of the set.
        names: of the tars, Arrow strings [shards].
        max_open: maps at a time, at least 1.
    """

    def __init__(self, folder: Path, names: pa.ChunkedArray, max_open: int) -> None:
        self._folder = folder
        self._opened = folder.stat()
        self._names = names
        self._max_open = max_open
        self._recent: OrderedDict[int, Block] = OrderedDict()
        self._alive: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def blocks(self, shard: int, extents: list[Extent]) -> list[Block]:
        """For each of `extents` bytes that hold it, or fewer where the tar ends before.

        Raises:
            FileNotFoundError: there is no such tar.
            ShardError: the file system refuses, or another set lies in the folder by now.
        """
        tar = self._recent.get(shard)
        if tar is not None:
            self._recent.move_to_end(shard)
            return [tar] * len(extents)
        if self._recent and max(len(self._alive), len(self._recent)) >= self._max_open:
            self._recent.popitem(last=False)
        name = self._names[shard].as_py()
        path = self._folder / name
        try:
            descriptor = open_file(self._folder, name)
            try:
                # Publishing moves a new folder into place; its tars have the same names.
                if not os.path.samestat(self._folder.stat(), self._opened):
                    raise ShardError(
                        f"{self._folder}: replaced by another set while it was in use; start again"
                    )
                if len(self._alive) >= self._max_open:
                    return [_copy(descriptor, *extent) for extent in extents]
                tar = self._recent[shard] = self._map(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ShardError(
                f"{path}: cannot be read ({error.strerror}); mend that and try again"
            ) from error
        return [tar] * len(extents)

    def _map(self, descriptor: int) -> Block:
        if not os.fstat(descriptor).st_size:
            return Block(memoryview(b""), 0)  # an empty file cannot be mapped
        tar = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        self._alive.add(tar)
        return Block(memoryview(tar), 0)


def _copy(descriptor: int, start: int, stop: int) -> Block:
    data = bytearray(stop - start)
    view, done = memoryview(data), 0
    while done < len(data) and (read := os.preadv(descriptor, [view[done:]], start + done)):
        done += read
    return Block(view[:done].toreadonly(), start)
