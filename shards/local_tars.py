"""Tars in a local folder: memory-mapped, with a limit on the number of open files."""

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
"""The range [start, stop) of a sample's bytes in its tar."""


def default_max_open() -> int:
    """Return a quarter of the files that this process may open, at most 8,192."""
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft_limit == resource.RLIM_INFINITY:
        return _MAX_OPEN
    return max(1, min(soft_limit // 4, _MAX_OPEN))


class LocalTars:
    """Memory maps of tars. A tar is mapped at its first read; the least recently used is closed.

    A map keeps a file descriptor while anything refers to a part of it. If the caller holds as many
    maps as allowed, bytes are copied out of the tar instead, which needs no descriptor.

    Args:
        folder: The folder of the set.
        names: The names of the tars, Arrow strings [shards].
        max_open: The most maps at a time, at least 1.
    """

    def __init__(self, folder: Path, names: pa.ChunkedArray, max_open: int) -> None:
        self._folder = folder
        self._opened = folder.stat()
        self._names = names
        self._max_open = max_open
        self._recent: OrderedDict[int, Block] = OrderedDict()
        self._alive: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def blocks(self, shard: int, extents: list[Extent]) -> list[Block]:
        """Return a block for each extent. A block ends earlier if the tar does.

        Args:
            shard: The index of the shard in `names`.
            extents: Ranges of bytes in the tar.

        Raises:
            FileNotFoundError: The tar does not exist.
            ShardError: The file system fails, or another set has replaced this one.
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
                # `publish` replaces the whole folder; the new tars have the same names.
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
