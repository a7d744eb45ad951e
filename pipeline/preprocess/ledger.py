"""The ledger of a shard set lists the sources that the set was made from, with their states.

It lies beside the set, not in it. Paths, sizes and times of files differ from machine to machine,
and the set's bytes must not. If the ledger is missing or belongs to another set, the set's own
indexes replace it. Then every source must be hashed again to find out whether it has changed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.folders import Folder
from pipeline.preprocess.ledger_check import check_rows, read_addresses, read_reading, read_seconds
from pipeline.preprocess.sources.tables import without_addresses
from pipeline.runs.storage import read_bytes, write_bytes
from shards import ShardError, ShardInfo, ShardSet
from shards.index_cache import read_index
from shards.parallel import in_order
from shards.parquet import decode_parquet, encode_parquet
from shards.parquet_groups import open_parquet
from shards.set_files import open_file

_SCHEMA = pa.schema(
    [
        ("uri", pa.binary()),
        ("split", pa.string()),
        ("state", pa.string()),  # see `source_states`; null if unknown
        ("sha256", pa.string()),  # sha256 of the source's bytes; null if it gave no sample
        ("target", pa.int64()),
        ("shard", pa.int64()),
    ]
)
_MAX_BYTES = 4 << 30
_SECONDS, _DIGEST, _ADDRESSES, _READING = b"seconds", b"digest", b"places", b"reading"


@dataclass(frozen=True)
class Ledger:
    """The sources that a set was made from.

    Attributes:
        table: One row for each source, with unique URIs. The columns are uri, split, state, sha256,
            target and shard.
        seconds: The duration of the last run that changed the set.
        addresses: The folder, listing or URL of each split, without secrets. Empty if unknown.
        reading: The fields of `data` that say what else may be read.
    """

    table: pa.Table
    seconds: float = 0.0
    addresses: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, shards: Folder) -> Self:
        """Read the ledger of the set in `shards`, or rebuild it from the set's indexes."""
        try:
            table = _read(shards)
            about = table.schema.metadata or {}
            shard_set = ShardSet.open(str(shards))
            # A run that was killed before it wrote the ledger leaves the ledger of an older set.
            if about.get(_DIGEST) != shard_set.digest.encode():
                return cls(_sources_in(shard_set))
            check_rows(table, shard_set.shard_table["number"])
            return cls(
                table,
                read_seconds(about[_SECONDS]),
                read_addresses(about[_ADDRESSES]),
                read_reading(about.get(_READING, b"{}")),
            )
        except (OSError, KeyError, ValueError):  # missing, damaged or not plausible
            return cls(_sources_in(ShardSet.open(str(shards))))


def ledger_path(shards: Folder) -> Folder:
    """Return the path of the ledger of the set in folder `shards`."""
    return shards.with_name(f"{shards.name}.sources.parquet")


def ledger_addresses(shards: Path) -> tuple[str, Mapping[str, str]]:
    """Read the set's digest and the addresses of its sources from the ledger beside `shards`.

    Both are empty if they are unknown. The table of sources is not read.
    """
    path = shards.with_name(ledger_path(shards).name)
    try:
        with os.fdopen(open_file(path.parent, path.name), "rb") as file:
            about = open_parquet(file, str(path)).schema_arrow.metadata or {}
        return about[_DIGEST].decode(), read_addresses(about[_ADDRESSES])
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return "", {}


def _read(shards: Folder) -> pa.Table:
    """Read the table from the ledger's file.

    Raises:
        OSError: The file cannot be read.
        ShardError: The file is damaged.
    """
    path = ledger_path(shards)
    return decode_parquet(read_bytes(path, _MAX_BYTES), _SCHEMA, str(path))


def source_states(table: pa.Table) -> pa.Array:
    """Return a digest of each source's state: its values, and its files' paths, sizes and times.

    Args:
        table: A row for each source, as in `SourceTable.table`.

    Returns:
        For each row 32 hexadecimal digits.
    """
    states: list[str] = []
    columns = ["values_digest", "values_mtime", "parts"]
    for batch in without_addresses(table.select(columns)).to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            text = json.dumps(row, default=_plain, sort_keys=True)
            states.append(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
    return pa.array(states, pa.string())


def write_ledger(
    shards: Folder,
    table: pa.Table,
    *,
    made: pa.Table | None = None,
    seconds: float,
    addresses: Mapping[str, str],
    reading: Mapping[str, Any] | None = None,
) -> None:
    """Write down that the set in `shards` was made from these sources.

    Args:
        shards: The folder of the set.
        table: A row for each source, as in `SourceTable.table`.
        made: The table of an earlier ledger of the same set, or None to read the set's indexes.
        seconds: The duration of the run.
        addresses: The folder, listing or URL of each split, without secrets.
        reading: The fields of `data` that say what else may be read, without secrets.
    """
    shard_set = ShardSet.open(str(shards))
    made = _sources_in(shard_set) if made is None else made
    about = {
        _SECONDS: str(seconds),
        _DIGEST: shard_set.digest,
        _ADDRESSES: json.dumps(dict(addresses)),
        _READING: json.dumps(dict(reading or {})),
    }
    found = pc.index_in(table["uri"], value_set=made["uri"].combine_chunks())
    columns = {
        "uri": table["uri"],
        "split": table["split"].cast(pa.string()),
        "state": source_states(table),
        **{name: made[name].take(found) for name in ("sha256", "target", "shard")},
    }
    ledger = pa.table(columns, schema=_SCHEMA.with_metadata(about))
    write_bytes(ledger_path(shards), encode_parquet(ledger.sort_by("uri")))


def _sources_in(shard_set: ShardSet) -> pa.Table:
    """Return the sources that gave samples, from the set's indexes. Their states are unknown."""

    def of_shard(shard: ShardInfo) -> pa.Table:
        try:
            index = read_index(shard_set.location, shard_set.names, shard, 0)
        except ShardError:
            return _SCHEMA.empty_table()  # `verify` reports it
        samples = pa.table(
            {
                "uri": index.source_uris.cast(pa.binary()),
                "sha256": index.source_sha256s,
                "target": index.targets,
            }
        )
        rows = samples.group_by(samples.schema.names, use_threads=False).aggregate([])
        facts = {
            "split": _repeat(shard.split, pa.string(), len(rows)),
            "state": pa.nulls(len(rows), pa.string()),
            "shard": _repeat(shard.number, pa.int64(), len(rows)),
        }
        columns = {**{name: rows[name] for name in samples.schema.names}, **facts}
        return pa.table(columns).select(_SCHEMA.names).cast(_SCHEMA)

    tables = [_SCHEMA.empty_table(), *in_order(of_shard, shard_set.rows())]
    return pa.concat_tables(tables).combine_chunks()


def _repeat(value: Any, kind: pa.DataType, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), count)


def _plain(value: Any) -> str:
    assert isinstance(value, bytes)
    return value.hex()
