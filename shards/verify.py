"""Compare every byte of a shard set with the hashes from when it was published."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.added_positions import ADDED_FILE, files_of_added, read_added
from shards.digests import sha256_hex, stream_sha256
from shards.errors import ShardError
from shards.index import ShardIndex, ShardInfo, max_index_bytes
from shards.manifest import MANIFEST_FILE, SHARD_TABLE_FILE
from shards.plain import printable
from shards.shard_set import ShardSet
from shards.tar import sample_extent

_MAX_KEYS_NAMED = 20


@dataclass(frozen=True)
class Problem:
    """A file of a set and a one-line description of its problem."""

    file: str
    what: str


def verify(path: str | Path, progress: Callable[[str], None] | None = None) -> list[Problem]:
    """Read every file of the set at `path` and report changed, missing and extra files.

    Args:
        path: A local folder or an fsspec URL.
        progress: Called with the name of each file after it is checked.

    Returns:
        The problems, an empty list for an intact set. For a damaged tar, the problem names the
        damaged samples.

    Raises:
        ShardError: The manifest or `shards.parquet` is missing or damaged, so nothing else can be
            checked.
    """
    shard_set = ShardSet.open(path)
    location, manifest = shard_set.location, shard_set.manifest
    present = location.names()
    names = shard_set.names
    expected = {MANIFEST_FILE, names.shard_table(manifest)}
    problems = []

    def differs(name: str, sha256: str) -> bool:
        expected.add(name)
        if name not in present:
            problems.append(Problem(name, "missing"))
            return False
        try:
            with location.open(name) as file:
                found = stream_sha256(file)
        except ShardError as error:  # it is not a regular file
            problems.append(Problem(name, printable(str(error))))
            return False
        if progress:
            progress(name)
        return found != sha256

    for name, sha256 in names.of_manifest(manifest):
        if name not in expected and differs(name, sha256):
            problems.append(Problem(name, f"sha256 differs from {MANIFEST_FILE}"))
    try:
        added = files_of_added(read_added(location), names)
    except ShardError as error:
        added = {}
        problems.append(Problem(ADDED_FILE, str(error)))
    expected |= {ADDED_FILE} & present
    for name, sha256 in added.items():
        if differs(name, sha256):
            problems.append(Problem(name, f"sha256 differs from {ADDED_FILE}"))
    for shard in shard_set.rows():
        tar, index = names.tar(shard), names.index(shard)
        index_differs = differs(index, shard.index_sha256)
        if index_differs:
            problems.append(Problem(index, f"sha256 differs from {SHARD_TABLE_FILE}"))
        elif what := _index_fault(shard_set, shard):
            problems.append(Problem(index, what))
        if differs(tar, shard.sha256):
            hit = _samples_hit(shard_set, shard) if not index_differs else "not known"
            problems.append(
                Problem(tar, f"sha256 differs from {SHARD_TABLE_FILE}; samples hit: {hit}")
            )
    problems += [
        Problem(printable(name), "not part of the set") for name in sorted(present - expected)
    ]
    return problems


def check_sizes(shard_set: ShardSet) -> list[Problem]:
    """Look at the names and sizes of a set's files, and report those that are missing or differ.

    One listing shows all of them. No file is read; `verify` does that.

    Raises:
        ShardError: The folder cannot be listed.
    """
    sizes, names = shard_set.location.sizes(), shard_set.names
    found = [
        Problem(name, "missing")
        for name, _ in names.of_manifest(shard_set.manifest)
        if name not in sizes
    ]
    for shard in shard_set.rows():
        tar, index = names.tar(shard), names.index(shard)
        found += [Problem(name, "missing") for name in (index, tar) if name not in sizes]
        if sizes.get(tar, shard.bytes) != shard.bytes:
            found.append(Problem(tar, f"has {sizes[tar]} bytes instead of {shard.bytes}"))
    return found


def _index_fault(shard_set: ShardSet, shard: ShardInfo) -> str | None:
    """Return what is wrong with the content of an index, or None if it is fine or missing."""
    name = shard_set.names.index(shard)
    try:
        data = shard_set.location.read(name, max_index_bytes(shard.samples))
        index = ShardIndex.decode(data, name)
        index.check_listed(shard, len(shard_set.manifest.classes), name)
    except FileNotFoundError:
        return None  # it is already reported as missing
    except ShardError as error:
        return str(error)
    return None


def _samples_hit(shard_set: ShardSet, shard: ShardInfo) -> str:
    location, names = shard_set.location, shard_set.names
    name = names.index(shard)
    try:
        index = ShardIndex.decode(location.read(name, max_index_bytes(shard.samples)), name)
    except (ShardError, FileNotFoundError):
        return "not known"
    hit = []
    for row in range(len(index)):
        start, stop = sample_extent(index.members(row))
        if (
            sha256_hex(location.read_range(names.tar(shard), start, stop))
            != index.sha256s[row].as_py()
        ):
            hit.append(repr(index.keys[row].as_py()))
    if not hit:
        return "none, the damage is in the end of the archive"
    more = len(hit) - _MAX_KEYS_NAMED
    return ", ".join(hit[:_MAX_KEYS_NAMED]) + (f" and {more} more" if more > 0 else "")
