"""Write one shard so that it appears complete or not at all, and recognise a complete shard."""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shards.digests import sha256_hex
from shards.errors import ShardError
from shards.files import AtomicFile
from shards.index import (
    MAX_INDEX_BYTES,
    IndexBuilder,
    ShardIndex,
    ShardInfo,
    index_name,
    shard_name,
)
from shards.plain import is_name
from shards.quarantine import Quarantined, write_quarantine
from shards.sample import Sample
from shards.set_files import read_file
from shards.tar import TarWriter, Writable

QUARANTINE_PARTS = "quarantine"
"""The folder in a staging folder for the quarantined sources of each shard, until `publish`."""


def quarantine_part(root: Path, number: int) -> Path:
    """Return the path of the file for the quarantined sources of shard `number`."""
    return root / QUARANTINE_PARTS / f"{number:05d}.parquet"


def write_shard(
    root: Path, number: int, split: str, samples: Iterable[Sample | Quarantined]
) -> ShardInfo:
    """Write shard `number` of the set in the staging folder `root`.

    The tar is written first, then the quarantined sources, then the index. Each is written under a
    temporary name and renamed, so the presence of the index commits the shard. The bytes depend
    only on the arguments. Memory is one sample and the index. A shard without samples has an index
    and no tar.

    Args:
        root: The staging folder. It is created if it does not exist.
        number: The index of the shard in the plan.
        split: The split of all `samples`.
        samples: The samples, consumed one at a time and written in this order. Sources that gave no
            sample may be among them.

    Returns:
        The facts about the shard, as `read_committed` returns them from now on.

    Raises:
        ShardError: The split's name is invalid, a key occurs twice, or the file system fails. No
            temporary file is left.
    """
    tar_path = root / shard_name(number)
    with AtomicFile(tar_path) as file:
        filled = fill_shard(file, str(tar_path), number, split, samples)
    if filled.quarantined:
        write_quarantine(quarantine_part(root, number), filled.quarantined)
    if not filled.info.samples:
        tar_path.unlink()
    with AtomicFile(root / index_name(number)) as file:
        file.write(filled.index)
    return filled.info


@dataclass(frozen=True)
class FilledShard:
    """A shard whose tar has been written.

    Attributes:
        info: The facts about the shard.
        index: The bytes of its index.
        quarantined: The sources that gave no sample.
    """

    info: ShardInfo
    index: bytes
    quarantined: list[Quarantined]


def fill_shard(
    file: Writable, where: str, number: int, split: str, samples: Iterable[Sample | Quarantined]
) -> FilledShard:
    """Write the tar of a shard, and return the rest. The arguments are those of `write_shard`.

    Args:
        file: The file of the tar. That of a shard without samples does not count.
        where: The name of the tar in errors.
        number: The index of the shard in the plan.
        split: The split of all `samples`.
        samples: The samples, consumed one at a time.

    Raises:
        ShardError: The split's name is invalid, or a key occurs twice.
    """
    if not is_name(split):
        raise ShardError(
            f"{where}: {split!r} cannot name a split; give letters, digits, '_', '-' and single '.'"
        )
    index = IndexBuilder(number, split)
    set_aside: list[Quarantined] = []
    tar = TarWriter(file)
    for sample in samples:
        if isinstance(sample, Quarantined):
            set_aside.append(sample)
            continue
        if sample.key in index.keys:
            raise ShardError(
                f"{where}: two samples have the key {sample.key!r}, the second from "
                f"{sample.source_uri!r}; give each source a key of its own"
            )
        index.add(sample, tar.add(sample.key, sample.members))
    size, sha256 = tar.finish()
    if not index.keys:
        size, sha256 = 0, sha256_hex(b"")
    info, data = index.encode(size, sha256)
    return FilledShard(info, data, set_aside)


def read_committed(root: Path, number: int) -> ShardInfo | None:
    """Return the facts about shard `number` if it is complete in `root`, else None.

    This checks the index and the size of the tar. `verify` reads the tar itself.
    """
    index = read_index(root, number)
    return None if index is None else index.info


def read_index(root: Path, number: int) -> ShardIndex | None:
    """Return the index of shard `number` if it is complete (see `read_committed`), else None."""
    name = index_name(number)
    try:
        data = read_file(root, name, MAX_INDEX_BYTES)
        index = ShardIndex.decode(data, f"{root / name}")
        # A link is rejected even if it leads to a valid tar.
        facts = (root / index.info.name).lstat() if index.info.samples else None
    except (FileNotFoundError, NotADirectoryError, ShardError):
        return None
    if index.info.number != number or (facts and not stat.S_ISREG(facts.st_mode)):
        return None
    tar_bytes = facts.st_size if facts else 0
    return index if tar_bytes == index.info.bytes else None
