"""A sample as it lies in its shard: views of the tar, its texts decoded when they are asked for."""

from typing import NamedTuple

from shards.index import ShardIndex


class Block(NamedTuple):
    """Bytes of a tar, the offset in it of the first one, and whether they may be taken as whole."""

    data: memoryview
    base: int
    checked: bool = True


class RawSample:
    """A sample as it was written. Its content stays valid for as long as the sample is held.

    Attributes:
        index: its number within the split.
    """

    __slots__ = ("_block", "_row", "_shard", "index")

    def __init__(self, index: int, shard: ShardIndex, row: int, block: Block) -> None:
        self.index = index
        self._shard = shard
        self._row = row
        self._block = block

    @property
    def key(self) -> str:
        """Its key."""
        return self._shard.keys[self._row].as_py()

    @property
    def members(self) -> dict[str, memoryview]:
        """Member name ("image.npy") to its content, read-only."""
        data, base, _ = self._block
        return {
            name: data[start - base : stop - base]
            for name, start, stop in self._shard.bounds(self._row)
        }

    @property
    def target(self) -> int | None:
        """Class number, or None."""
        return self._shard.targets[self._row].as_py()

    @property
    def source_uri(self) -> str:
        """What it was made from."""
        return self._shard.source_uris[self._row].as_py()

    def __repr__(self) -> str:
        return f"RawSample(index={self.index}, key={self.key!r}, members={list(self.members)})"
