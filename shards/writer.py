"""Writing one shard, so that it is there whole or not at all, and knowing afterwards that it is."""

import stat
from collections.abc import Iterable
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
from shards.tar import TarWriter

QUARANTINE_PARTS = "quarantine"
"""Folder of a staging area: what each shard set aside, until the set is published."""


def quarantine_part(root: Path, number: int) -> Path:
    """Where shard `number` keeps what it set aside."""
    return root / QUARANTINE_PARTS / f"{number:05d}.parquet"


def write_shard(
    root: Path, number: int, split: str, samples: Iterable[Sample | Quarantined]
) -> ShardInfo:
    """Writes shard `number` of the set being made in `root`.

    The tar comes first, then what was set aside, then the index, each under a temporary name and
    renamed: the index's presence commits the shard. The bytes depend on the arguments only. Memory
    is one sample and the index. Without samples there is an index and no tar.

    Args:
        root: the staging folder; made where missing.
        number: the shard's index in the plan.
        split: the split of all `samples`.
        samples: consumed one at a time, written in this order; sources that gave no sample may come
            among them.

    Returns:
        The shard's facts, as `read_committed` gives them from now on.

    Raises:
        ShardError: the split's name is not plain, a key comes twice, or the file system refuses; no
            temporary file stays behind.
    """
    if not is_name(split):
        raise ShardError(
            f"{root}: {split!r} cannot name a split; give letters, digits, '_', '-' and single '.'"
        )
    index = IndexBuilder(number, split)
    set_aside: list[Quarantined] = []
    tar_path = root / shard_name(number)
    with AtomicFile(tar_path) as file:
        tar = TarWriter(file)
        for sample in samples:
            if isinstance(sample, Quarantined):
                set_aside.append(sample)
                continue
            if sample.key in index.keys:
                raise ShardError(
                    f"{tar_path}: two samples have the key {sample.key!r}, the second from "
                    f"{sample.source_uri!r}; give each source a key of its own"
                )
            index.add(sample, tar.add(sample.key, sample.members))
        size, sha256 = tar.finish()
    if set_aside:
        write_quarantine(quarantine_part(root, number), set_aside)
    if not index.keys:
        tar_path.unlink()
        size, sha256 = 0, sha256_hex(b"")
    info, data = index.encode(size, sha256)
    with AtomicFile(root / index_name(number)) as file:
        file.write(data)
    return info


def read_committed(root: Path, number: int) -> ShardInfo | None:
    """The facts of shard `number` if it lies whole in `root`, else None: it is to be written.

    Looks at the index and the tar's size; `verify` reads the tar itself.
    """
    index = read_index(root, number)
    return None if index is None else index.info


def read_index(root: Path, number: int) -> ShardIndex | None:
    """The index of shard `number` under the conditions of `read_committed`, else None."""
    name = index_name(number)
    try:
        data = read_file(root, name, MAX_INDEX_BYTES)
        index = ShardIndex.decode(data, f"{root / name}")
        # A link is none of this set's files, wherever it leads.
        facts = (root / index.info.name).lstat() if index.info.samples else None
    except (FileNotFoundError, NotADirectoryError, ShardError):
        return None
    if index.info.number != number or (facts and not stat.S_ISREG(facts.st_mode)):
        return None
    tar_bytes = facts.st_size if facts else 0
    return index if tar_bytes == index.info.bytes else None
