"""Facts about a shard that are known without reading it, and the paths of its files."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ShardInfo:
    """One shard's row in `shards.parquet`.

    Attributes:
        number: The index of the shard in the plan.
        name: The path of the tar within the set.
        split: The split of all its samples.
        samples: The number of samples. An empty shard has an index and no tar. It is left out when
            the set is published.
        bytes: The size of the tar.
        sha256: The sha256 of the tar.
        index_sha256: The sha256 of the index.
    """

    number: int
    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


def shard_name(number: int) -> str:
    """Return the path of a shard's tar within the set."""
    return f"shard-{number:05d}.tar"


def index_name(number: int) -> str:
    """Return the path of a shard's index within the set."""
    return f"index/{number:05d}.parquet"
