"""Shard sets whose files say what their writer likes, with every checksum made to fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.digests import canonical_json, sha256_hex
from shards.parquet import encode_parquet

Change = Callable[[Any], Any]
"""Changes its argument in place, or returns another in its place."""


def changed(value: Any, change: Change | None) -> Any:
    """What a change makes of a value."""
    result = change(value) if change else None
    return value if result is None else result


def reseal(
    folder: Path,
    *,
    index: Change | None = None,
    facts: Change | None = None,
    listing: Change | None = None,
    manifest: Change | None = None,
    shard: int = 0,
) -> None:
    """Changes a set's files and makes every checksum fit what they say now.

    Args:
        folder: of the set.
        index: of the rows of an index.
        facts: of what the index's metadata says of its shard.
        listing: of the rows of `shards.parquet`.
        manifest: of the manifest's content, but for its checksum.
        shard: whose index is changed.
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
    data = encode_parquet(pa.Table.from_pylist(changed(shards, listing), schema=table.schema))
    (folder / "shards.parquet").write_bytes(data)
    seal(folder, manifest)


def seal(folder: Path, change: Change | None = None) -> None:
    """Changes the manifest and makes its checksums fit all files."""
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
    """A change that puts the last of `path` at the place that the others name."""
    *keys, last, value = path

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return change
