"""The ledger of a shard set lists the sources that the set was made from, with their states.

It lies beside the set, not in it. Paths, sizes and times of files differ from machine to machine,
and the set's bytes must not. If the ledger is missing or belongs to another set, the set's own
indexes replace it. Then every source must be hashed again to find out whether it has changed.

It is read and written in pieces, since its size grows with the sources.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.folders import Folder
from pipeline.preprocess.ledger_check import (
    check_rows,
    check_unique,
    read_addresses,
    read_reading,
    read_seconds,
)
from pipeline.preprocess.sources import SourceTable, StoredTable, TableStore
from pipeline.preprocess.sources.partitions import (
    by_hash,
    count_partitions,
    dealt,
    hashes,
    loaded,
    released,
    transposed,
)
from pipeline.preprocess.sources.row_groups import group_batches
from pipeline.preprocess.sources.tables import (
    BATCH_ROWS,
    in_runs,
    one_chunk,
    without_addresses,
)
from pipeline.runs.storage import upload
from shards import ShardError, ShardInfo, ShardSet
from shards.index_cache import read_index
from shards.location import Location
from shards.names import FileNames
from shards.parallel import in_order
from shards.parquet_groups import open_parquet
from shards.set_files import open_file

LEDGER_SCHEMA = pa.schema(
    [
        ("uri", pa.binary()),
        ("split", pa.string()),
        ("state", pa.string()),  # see `source_states`; null if unknown
        ("sha256", pa.string()),  # sha256 of the source's bytes; null if it gave no sample
        ("target", pa.int64()),
        ("shard", pa.int64()),
    ]
)
INDEXES_AT_ONCE = 256
_SECONDS, _DIGEST, _ADDRESSES, _READING = b"seconds", b"digest", b"places", b"reading"


@dataclass(frozen=True)
class Ledger:
    """The sources that a set was made from.

    Attributes:
        tables: One row for each source, with unique URIs. The columns are uri, split, state,
            sha256, target and shard.
        seconds: The duration of the last run that changed the set.
        addresses: The folder, listing or URL of each split, without secrets. Empty if unknown.
        reading: The fields of `data` that say what else may be read.
    """

    tables: tuple[StoredTable, ...]
    seconds: float = 0.0
    addresses: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> pa.Table:
        """All rows at once. Their size grows with the sources."""
        return loaded(self.tables, LEDGER_SCHEMA)

    @classmethod
    def read(cls, shards: Folder, store: TableStore | None = None) -> Self:
        """Read the ledger of the set in `shards`, or rebuild it from the set's indexes.

        Args:
            shards: The folder of the set.
            store: Holds the rows and runs the work; None for a store of this process alone.
        """
        store = TableStore() if store is None else store
        try:
            with _opened(shards) as file:
                parquet = open_parquet(file, str(ledger_path(shards)))
                about = parquet.schema_arrow.metadata or {}
                shard_set = ShardSet.open(str(shards))
                # A run that was killed before it wrote the ledger leaves that of an older set.
                if about.get(_DIGEST) != shard_set.digest.encode():
                    return cls(_sources_in(shard_set, store))
                facts = (
                    read_seconds(about[_SECONDS]),
                    read_addresses(about[_ADDRESSES]),
                    read_reading(about.get(_READING, b"{}")),
                )
                numbers = shard_set.shard_table["number"]
                tables = [store.put(table) for table in _checked(file, parquet, numbers)]
            check_unique(store, tables)
            return cls(tuple(tables), *facts)
        except (OSError, KeyError, ValueError, pa.ArrowException):  # missing, damaged, implausible
            return cls(_sources_in(ShardSet.open(str(shards)), store))


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


@contextlib.contextmanager
def _opened(shards: Folder) -> Iterator[BinaryIO]:
    """Open the ledger of a set for reading.

    Raises:
        OSError: The file cannot be read.
        ShardError: It is no regular file.
    """
    path = ledger_path(shards)
    if isinstance(path, Path):
        with os.fdopen(open_file(path.parent, path.name), "rb") as file:
            yield file
        return
    try:
        opened = path.fs.open(path.path, "rb")
    except Exception as error:  # each file system has its own exceptions
        raise OSError(f"{path}: cannot be opened") from error
    with opened as file:
        yield file


def _checked(
    file: BinaryIO, parquet: pq.ParquetFile, numbers: pa.ChunkedArray
) -> Iterator[pa.Table]:
    """Yield the rows of a ledger in pieces. Anyone may have written the file.

    Raises:
        ValueError: A row cannot be true of the set with shards of these numbers.
    """
    schema = parquet.schema_arrow
    if not schema.equals(LEDGER_SCHEMA, check_metadata=False):
        raise ValueError("other columns")
    for group in range(parquet.num_row_groups):
        for table in in_runs(group_batches(file, parquet, group, schema.names, BATCH_ROWS)):
            rows = table.cast(LEDGER_SCHEMA)
            rows.validate(full=True)
            check_rows(rows, numbers)
            yield rows


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
    source_table: SourceTable,
    *,
    made: Sequence[StoredTable] | None = None,
    seconds: float,
    addresses: Mapping[str, str],
    reading: Mapping[str, Any] | None = None,
) -> None:
    """Write down that the set in `shards` was made from these sources.

    Sources are dealt out by name, and each row group has those of a partition.

    Args:
        shards: The folder of the set.
        source_table: The sources.
        made: The tables of an earlier ledger of the same set, or None to read the set's indexes.
        seconds: The duration of the run.
        addresses: The folder, listing or URL of each split, without secrets.
        reading: The fields of `data` that say what else may be read, without secrets.
    """
    shard_set = ShardSet.open(str(shards))
    store = source_table.store
    made = _sources_in(shard_set, store) if made is None else made
    about = {
        _SECONDS: str(seconds),
        _DIGEST: shard_set.digest,
        _ADDRESSES: json.dumps(dict(addresses)),
        _READING: json.dumps(dict(reading or {})),
    }
    chunks = [chunk.stored for chunk in source_table.chunks]
    count = count_partitions(chunks)
    noted = transposed(store.run(_note, ((chunk, count) for chunk in chunks)), count)
    earlier = by_hash(store, made, "uri", count)
    calls = zip(released(noted), released(earlier), strict=True)
    with tempfile.TemporaryDirectory(prefix="perceiver-ledger-") as folder:
        path = Path(folder) / "sources.parquet"
        schema = LEDGER_SCHEMA.with_metadata(about)
        options: Any = {"version": "2.6", "compression": "zstd", "compression_level": 3}
        with pq.ParquetWriter(path, schema, **options) as writer:
            for tables, _ in store.run(_join, calls):
                for table in tables:
                    writer.write_table(table.load().replace_schema_metadata(about))
        upload(path, ledger_path(shards))


def _note(chunk: StoredTable, count: int) -> Iterator[pa.Table]:
    """Deal the states of some sources out by name, as a step."""
    table = chunk.load()
    noted = pa.table(
        {
            "uri": table["uri"],
            "split": table["split"].cast(pa.string()),
            "state": source_states(table),
        }
    )
    yield from dealt(noted, hashes(noted["uri"], of_uris=True) % count, count)


def _join(sources: list[StoredTable], made: list[StoredTable]) -> Iterator[pa.Table]:
    """Bring the states of sources together with what the set has of them, as a step."""
    table = pa.concat_tables([source.load() for source in sources]) if sources else None
    if table is None:
        return
    earlier = loaded(made, LEDGER_SCHEMA)
    found = pc.index_in(table["uri"], value_set=one_chunk(earlier["uri"]))
    columns = {name: table[name] for name in ("uri", "split", "state")}
    for name in ("sha256", "target", "shard"):
        columns[name] = earlier[name].take(found)
    yield pa.table(columns, schema=LEDGER_SCHEMA).sort_by("uri")


def _sources_in(shard_set: ShardSet, store: TableStore) -> tuple[StoredTable, ...]:
    """Return the sources that gave samples, from the set's indexes. Their states are unknown."""
    rows = shard_set.rows()
    calls = (
        (shard_set.location, shard_set.names, some)
        for some in iter(lambda: list(islice(rows, INDEXES_AT_ONCE)), [])
    )
    made = store.run(_read_indexes, calls)
    return tuple(table for tables, _ in made for table in tables)


def _read_indexes(
    location: Location, names: FileNames, shards: list[ShardInfo]
) -> Iterator[pa.Table]:
    """Read the sources of some shards from their indexes, as a step."""

    def of_shard(shard: ShardInfo) -> pa.Table:
        try:
            index = read_index(location, names, shard, 0)
        except ShardError:
            return LEDGER_SCHEMA.empty_table()  # `verify` reports it
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
        return pa.table(columns).select(LEDGER_SCHEMA.names).cast(LEDGER_SCHEMA)

    yield pa.concat_tables(in_order(of_shard, shards)).combine_chunks()


def _repeat(value: Any, kind: pa.DataType, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), count)


def _plain(value: Any) -> str:
    assert isinstance(value, bytes)
    return value.hex()
