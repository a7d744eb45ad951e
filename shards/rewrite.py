"""Reuse a shard of an older set, whole or without some of its sources."""

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from shards.digests import sha256_hex
from shards.errors import ShardError
from shards.files import AtomicFile, sync_folder
from shards.index import ShardIndex, ShardInfo, index_name, shard_name
from shards.sample import Sample
from shards.set_files import open_file
from shards.tar import sample_extent
from shards.writer import read_index, write_shard


def link_shard(source: Path, staging: Path, number: int) -> None:
    """Copy a shard of the set in `source` unchanged into `staging`.

    The files are hard links if the file system supports them, else copies. The index is written
    last, as in `write_shard`, so the shard is complete or not there.

    Args:
        source: The folder of the older set.
        staging: The folder of the new set.
        number: The number of the shard in both sets.

    Raises:
        ShardError: `source` has no such shard, or the file system fails.
    """
    for name in (shard_name(number), index_name(number)):
        if not (staging / name).exists():
            _check_regular(source, name)
            _link(source / name, staging / name)


def rewrite_shard(source: Path, staging: Path, number: int, without: Collection[str]) -> ShardInfo:
    """Write shard `number` of the set in `source` into `staging` without some sources.

    The other samples keep their bytes and their order. No sample is decoded.

    Args:
        source: The folder of the older set.
        staging: The folder of the new set.
        number: The number of the shard in both sets.
        without: The URIs of the sources to leave out.

    Returns:
        The facts about the new shard.

    Raises:
        ShardError: `source` has no such shard, the shard is damaged, or the file system fails.
    """
    index = read_index(source, number)
    if index is None:
        raise ShardError(
            f"{source / shard_name(number)}: missing or cut short; run 'perceiver verify' there"
        )
    with os.fdopen(open_file(source, index.info.name), "rb") as file:
        samples = samples_without(file, str(source / index.info.name), index, frozenset(without))
        return write_shard(staging, number, index.info.split, samples)


def samples_without(
    file: BinaryIO, tar: str, index: ShardIndex, without: Collection[str]
) -> Iterator[Sample]:
    """Yield the samples of a shard, except those of some sources. They are not decoded.

    Args:
        file: The tar of the shard.
        tar: The name of the tar in errors.
        index: The index of the shard.
        without: The URIs of the sources to leave out.

    Raises:
        ShardError: A sample is damaged.
    """
    for row in range(len(index)):
        source_uri = index.source_uris[row].as_py()
        if source_uri in without:
            continue
        key, spans = index.keys[row].as_py(), index.members(row)
        start, stop = sample_extent(spans)
        file.seek(start)
        extent = file.read(stop - start)
        if sha256_hex(extent) != index.sha256s[row].as_py():
            raise ShardError(
                f"{tar}: damaged, it hits sample {key!r}; restore it, or make the set again "
                "with --fresh"
            )
        members = {
            span.name: extent[span.offset - start : span.offset - start + span.length]
            for span in spans
        }
        target, sha256 = index.targets[row].as_py(), index.source_sha256s[row].as_py()
        yield Sample(key, members, target, source_uri, sha256)


def _check_regular(folder: Path, name: str) -> None:
    """Reject anything but a regular file, since a hard link would bring it into the new set."""
    try:
        os.close(open_file(folder, name))
    except FileNotFoundError as error:
        raise ShardError(f"{folder / name}: missing; run 'perceiver verify' on the set") from error
    except OSError as error:
        raise ShardError(f"{folder / name}: cannot be read ({error.strerror})") from error


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError:  # another file system, or one without hard links
        with source.open("rb") as original, AtomicFile(target) as copy:
            shutil.copyfileobj(original, copy, 1 << 20)
    else:
        sync_folder(target.parent)
