"""What is known of a shard without reading it, and where its files lie."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ShardInfo:
    """One shard's row in `shards.parquet`.

    Attributes:
        number: its index in the plan.
        name: the tar's path within the set.
        split: the one split that all its samples belong to.
        samples: how many; a shard with none has an index and no tar, until the set is published.
        bytes: size of the tar.
        sha256: of the tar.
        index_sha256: of the index.
    """

    number: int
    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


def shard_name(number: int) -> str:
    """The tar's path within a shard set."""
    return f"shard-{number:05d}.tar"


def index_name(number: int) -> str:
    """The index's path within a shard set."""
    return f"index/{number:05d}.parquet"
