"""A sample as a view of its shard. Its key and source are decoded only on request."""

from typing import NamedTuple

from shards.index import ShardIndex


class Block(NamedTuple):
    """Bytes of a tar: the data, its offset in the tar, and whether its sha256 was checked."""

    data: memoryview
    base: int
    checked: bool = True


class RawSample:
    """A sample as it was written. Its content stays valid while the sample is referenced.

    Attributes:
        index: The number of the sample within the split.
    """

    __slots__ = ("_block", "_row", "_shard", "index")

    def __init__(self, index: int, shard: ShardIndex, row: int, block: Block) -> None:
        self.index = index
        self._shard = shard
        self._row = row
        self._block = block

    @property
    def key(self) -> str:
        """The key of the sample."""
        return self._shard.keys[self._row].as_py()

    @property
    def members(self) -> dict[str, memoryview]:
        """Maps a member's name ("image.npy") to its content, read-only."""
        data, base, _ = self._block
        return {
            name: data[start - base : stop - base]
            for name, start, stop in self._shard.bounds(self._row)
        }

    @property
    def target(self) -> int | None:
        """The class number, or None."""
        return self._shard.targets[self._row].as_py()

    @property
    def source_uri(self) -> str:
        """The file or row that the sample was made from."""
        return self._shard.source_uris[self._row].as_py()

    def __repr__(self) -> str:
        return f"RawSample(index={self.index}, key={self.key!r}, members={list(self.members)})"
