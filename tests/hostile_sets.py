"""Helpers for shard sets with false content and checksums that fit it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards import RemoteReading, ShardReader, ShardSet
from shards.digests import canonical_json, sha256_hex
from shards.parquet import encode_parquet

HEX = "0" * 64
OUTSIDE = "../../outside/secret"
BAD_NAMES = [
    "/etc/passwd",
    "../outside",
    "..",
    ".",
    "",
    "a/b",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "CON:",
    "a..b",
]
BAD_DIGESTS = [OUTSIDE, "/etc/passwd", "", "0" * 63, "0" * 65, "A" * 64, "0" * 63 + "\n", "é" * 64]

Change = Callable[[Any], Any]
"""A function that changes its argument, or returns a new value."""


def changed(value: Any, change: Change | None) -> Any:
    """Return the value after a change. Without a change, return it as it is."""
    result = change(value) if change else None
    return value if result is None else result


def reseal(
    folder: Path,
    *,
    index: Change | None = None,
    facts: Change | None = None,
    shard_table: Change | None = None,
    manifest: Change | None = None,
    shard: int = 0,
) -> None:
    """Change a set's files and update every checksum.

    Args:
        folder: The folder of the set.
        index: A change of the rows of an index.
        facts: A change of the index's metadata about its shard.
        shard_table: A change of the rows of `shards.parquet`.
        manifest: A change of the manifest's content without its checksum.
        shard: The number of the shard with this index.
    """
    path = folder / "index" / f"{shard:05d}.parquet"
    table = pq.read_table(path)
    about = changed(json.loads(table.schema.metadata[b"shard"]), facts)
    rows = changed(table.to_pylist(), index)
    schema = table.schema.with_metadata({b"shard": json.dumps(about)})
    data = encode_parquet(pa.Table.from_pylist(rows, schema=schema))
    path.write_bytes(data)

    table = pq.read_table(folder / "shards.parquet")
    shards = table.to_pylist()
    next(row for row in shards if row["number"] == shard)["index_sha256"] = sha256_hex(data)
    data = encode_parquet(pa.Table.from_pylist(changed(shards, shard_table), schema=table.schema))
    (folder / "shards.parquet").write_bytes(data)
    seal(folder, manifest)


def seal(folder: Path, change: Change | None = None) -> None:
    """Change the manifest and update its checksums of all files."""
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    del content["checksum"]
    content["shards_sha256"] = sha256_hex((folder / "shards.parquet").read_bytes())
    content["quarantine_sha256"] = sha256_hex((folder / "quarantine.parquet").read_bytes())
    for digest in content["positions"]:
        table = (folder / "positions" / f"{digest}.npy").read_bytes()
        content["position_sha256"][digest] = sha256_hex(table)
    content = changed(content, change)
    path.write_bytes(canonical_json(content | {"checksum": sha256_hex(canonical_json(content))}))


def put(*path: Any) -> Change:
    """Return a change that sets one value. `path` is the keys that lead to it, and the value."""
    *keys, last, value = path

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return change


def use(address: Any, cache: Path) -> None:
    """Open a set, read all its samples by ranges and by whole shards, and its positions."""
    shard_set = ShardSet.open(address)
    for split in shard_set.manifest.counts:
        for cost in (1, 1 << 30):  # by ranges, and by whole shards
            remote = RemoteReading(cache_folder=cache, request_cost=cost)
            reader = ShardReader(shard_set, split, remote=remote)
            for sample in reader.read_many(np.arange(len(reader))):
                assert sample.members and sample.key and sample.source_uri is not None
    for spec in shard_set.manifest.positions.values():
        shard_set.position_table(spec)


def assert_plain(text: str) -> None:
    """Check that a message is short and has no control characters."""
    assert text and len(text) < 3000, repr(text[:3000])
    assert all(character.isprintable() for character in text), repr(text)


opened: list[str] = []
"""The paths that were opened, renamed, linked or removed since a test cleared this list."""


def note_paths(event: str, arguments: tuple[Any, ...]) -> None:
    """Add the paths of an audit event of Python to `opened`."""
    if event in ("open", "os.remove", "os.rename", "os.unlink", "shutil.rmtree", "os.link"):
        opened.extend(str(argument) for argument in arguments[:2])
