"""Every byte of a shard set against the hashes it was published with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.digests import sha256_hex, stream_sha256
from shards.index import ShardIndex, index_name
from shards.location import Location
from shards.manifest import LISTING_FILE, MANIFEST_FILE, Manifest
from shards.positions import position_name
from shards.quarantine import QUARANTINE_FILE
from shards.shard_set import ShardSet
from shards.tar import sample_extent

_MAX_KEYS_NAMED = 20


@dataclass(frozen=True)
class Problem:
    """One file of a set and what is wrong with it, in one line."""

    file: str
    what: str


def verify(path: str | Path, progress: Callable[[str], None] | None = None) -> list[Problem]:
    """Reads every file of the set at `path`: any changed bit, missing or extra file is a problem.

    Args:
        path: local folder or fsspec URL.
        progress: called with each file's name once it has been checked.

    Returns:
        The problems found, none for a whole set. A damaged tar's names the samples it hits.

    Raises:
        ShardError: without its manifest or `shards.parquet` nothing else can be checked.
    """
    shard_set = ShardSet.open(path)
    location, manifest = shard_set.location, shard_set.manifest
    present = location.names()
    expected = {MANIFEST_FILE, LISTING_FILE}
    problems = []

    def differs(name: str, sha256: str) -> bool:
        expected.add(name)
        if name not in present:
            problems.append(Problem(name, "missing"))
            return False
        with location.open(name) as file:
            found = stream_sha256(file)
        if progress:
            progress(name)
        return found != sha256

    for name, sha256 in _files_of_manifest(manifest):
        if differs(name, sha256):
            problems.append(Problem(name, f"sha256 differs from {MANIFEST_FILE}"))
    for shard in _rows(shard_set):
        tar, index = shard["name"], index_name(shard["number"])
        index_differs = differs(index, shard["index_sha256"])
        if index_differs:
            problems.append(Problem(index, f"sha256 differs from {LISTING_FILE}"))
        if differs(tar, shard["sha256"]):
            index_usable = index in present and not index_differs
            hit = _samples_hit(location, tar, index) if index_usable else "not known"
            problems.append(Problem(tar, f"sha256 differs from {LISTING_FILE}; samples hit: {hit}"))
    problems += [Problem(name, "not part of the set") for name in sorted(present - expected)]
    return problems


def _files_of_manifest(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield QUARANTINE_FILE, manifest.quarantine_sha256
    for digest, sha256 in manifest.position_sha256.items():
        yield position_name(digest), sha256


def _rows(shard_set: ShardSet) -> Iterator[dict[str, Any]]:
    for batch in shard_set.listing.to_batches(max_chunksize=1000):
        yield from batch.to_pylist()


def _samples_hit(location: Location, tar: str, index_file: str) -> str:
    index = ShardIndex.decode(location.read(index_file), index_file)
    hit = []
    for row in range(len(index)):
        start, stop = sample_extent(index.members(row))
        if sha256_hex(location.read_range(tar, start, stop)) != index.sha256s[row].as_py():
            hit.append(repr(index.keys[row].as_py()))
    if not hit:
        return "none, the damage is in the end of the archive"
    more = len(hit) - _MAX_KEYS_NAMED
    return ", ".join(hit[:_MAX_KEYS_NAMED]) + (f" and {more} more" if more > 0 else "")
