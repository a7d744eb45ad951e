"""The samples that one read takes from one shard."""

from typing import NamedTuple

from shards.index import ShardIndex
from shards.local_tars import Extent
from shards.raw_sample import Block


class ShardRequest(NamedTuple):
    """The samples to read from one shard: positions in the whole request, rows and extents."""

    shard: int
    shard_index: ShardIndex
    positions: list[int]
    rows: list[int]
    extents: list[Extent]

    @property
    def num_bytes(self) -> int:
        return sum(stop - start for start, stop in self.extents)

    def key(self, number: int) -> str:
        return self.shard_index.keys[self.rows[number]].as_py()


def copies(blocks: list[Block], extents: list[Extent], room: memoryview) -> list[Block]:
    """Copy the extents of some blocks into `room`. A copy ends earlier if its block does."""
    copies = []
    for block, (start, stop) in zip(blocks, extents, strict=True):
        content = block.data[start - block.base : stop - block.base]
        own = room[: len(content)]
        own[:] = content
        copies.append(Block(own.toreadonly(), start, block.checked))
        room = room[len(content) :]
    return copies
