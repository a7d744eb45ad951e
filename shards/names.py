"""The names of a set's files: by number in a folder, by content in object storage.

Only `manifest.json` has the same name in both. In a folder, a set is replaced by renaming the
folder, so its files can have plain names. Object storage has no renames. There, each name carries
the first digits of its file's sha256. So a new set never overwrites a file of the old one, which
may be in use, and the manifest alone says which files count.

    by number                 by content
    shards.parquet            shards-3f2a….parquet
    quarantine.parquet        quarantine-b01c….parquet
    positions/DIGEST.npy      positions/DIGEST-77e0….npy
    shard-00012.tar           shard-00012-9ac4….tar
    index/00012.parquet       index/00012-1d5b….parquet

The manifest and the table of shards have the digests, and do not have the names by content. So a
set has the same digest under both, and a copy of one is read under the names that it has.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from shards.manifest import SHARD_TABLE_FILE, Manifest
from shards.positions import position_name
from shards.quarantine import QUARANTINE_FILE
from shards.shard_info import ShardInfo, index_name

DIGITS = 16
"""The hexadecimal digits of a sha256 in a name. Two files could take each other's place only if
they had the same number and the same 64 bits. Readers compare the whole sha256."""


@dataclass(frozen=True)
class FileNames:
    """How the files of a set are named.

    Attributes:
        by_content: Whether each name carries the digest of its file.
    """

    by_content: bool = False

    def shard_table(self, manifest: Manifest) -> str:
        """Return the path of the table of shards within the set."""
        return self._named(SHARD_TABLE_FILE, manifest.shards_sha256)

    def quarantine(self, manifest: Manifest) -> str:
        """Return the path of the quarantine within the set."""
        return self._named(QUARANTINE_FILE, manifest.quarantine_sha256)

    def position_table(self, digest: str, sha256: str) -> str:
        """Return the path of the position table with a digest within the set.

        Args:
            digest: The digest of its specification.
            sha256: The sha256 of its file.
        """
        return self._named(position_name(digest), sha256)

    def tar(self, shard: ShardInfo) -> str:
        """Return the path of a shard's tar within the set."""
        return self._named(shard.name, shard.sha256)

    def index(self, shard: ShardInfo) -> str:
        """Return the path of a shard's index within the set."""
        return self.index_of(shard.number, shard.index_sha256)

    def index_of(self, number: int, sha256: str) -> str:
        """Return the path of the index of a shard within the set.

        Args:
            number: The number of the shard.
            sha256: The sha256 of the index.
        """
        return self._named(index_name(number), sha256)

    def of_manifest(self, manifest: Manifest) -> Iterator[tuple[str, str]]:
        """Yield the path and the sha256 of each file that the manifest names, but no shard."""
        yield self.shard_table(manifest), manifest.shards_sha256
        yield self.quarantine(manifest), manifest.quarantine_sha256
        for digest, sha256 in manifest.position_sha256.items():
            yield self.position_table(digest, sha256), sha256

    def of_shard(self, shard: ShardInfo) -> Iterator[tuple[str, str]]:
        """Yield the path and the sha256 of a shard's index and of its tar."""
        yield self.index(shard), shard.index_sha256
        yield self.tar(shard), shard.sha256

    def _named(self, name: str, sha256: str) -> str:
        if not self.by_content:
            return name
        stem, _, suffix = name.rpartition(".")
        return f"{stem}-{sha256[:DIGITS]}.{suffix}"


BY_NUMBER, BY_CONTENT = FileNames(), FileNames(by_content=True)
