"""The plan says which samples make which shard. Workers read it by shard, from Parquet files.

A worker reads the whole footer of a file to find one shard in it, so a file has few shards.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.data import SPLITS
from pipeline.config.folders import folder_at
from pipeline.preprocess.sources.parts import SourceFile, opened
from pipeline.preprocess.sources.source_table import SourceTable
from pipeline.preprocess.sources.stored_tables import StoredTable
from pipeline.preprocess.sources.tables import addresses_of, without_addresses
from pipeline.preprocess.sources.values import InlineValues, read_row_values
from pipeline.runs.storage import upload

_VALUES = b"values"
SHARDS_IN_A_FILE = 256


@dataclass(frozen=True)
class SourceRow:
    """A source that will become a sample.

    Attributes:
        split: The name of its split.
        uri: `SPLIT/NAME`.
        target: The number of its class, or None.
        row: Its row in the listing that holds its values, or None.
        parts: Its files.
        values: Its values in the listing, in the types of JSON: `table` (column to value, null if
            missing) and `target` (names, numbers or token numbers).
        inline: The bytes of fields that lie in the listing itself.
    """

    split: str
    uri: str
    target: int | None
    row: int | None
    parts: tuple[SourceFile, ...]
    values: dict[str, Any] = field(default_factory=dict)
    inline: dict[str, bytes] = field(default_factory=dict)


def write_plan(
    source_table: SourceTable, path: Path, samples_per_shard: int, address: str = ""
) -> int:
    """Cut the sources into shards of one split each. Each row group lists the samples of a shard.

    Values in a CSV or JSON Lines file are copied to Parquet beside the plan. Addresses that hold
    secrets are left out; see `shard_addresses` and `SourceTable.value_addresses`.

    Args:
        source_table: All sources, in their order.
        path: The path of the plan.
        samples_per_shard: The number of samples in a shard. The last shard of a split may have
            fewer.
        address: The path or URL at which workers find the plan and the files beside it; empty for
            the path where they are written.

    Returns:
        The number of shards.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prepared: dict[InlineValues, dict[str, Any]] = {}
    for split, inline in source_table.values.items():  # splits may share a listing
        if inline not in prepared:
            copy = f".{split}.values.parquet"
            about = inline.prepare(path.with_name(f"{path.name}{copy}"))
            if address and about["path"] == f"{path}{copy}":
                about["path"] = f"{address}{copy}"
            prepared[inline] = about
    values = {split: prepared[inline] for split, inline in source_table.values.items()}
    calls = _files(source_table, samples_per_shard, address or str(path), json.dumps(values))
    for _ in source_table.store.run(_write_file, calls):
        pass
    return sum(1 for _ in _cuts(source_table, samples_per_shard))


def _files(
    source_table: SourceTable, samples_per_shard: int, address: str, values: str
) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of `_write_file` for each file of a plan."""
    chunks = [chunk.stored for chunk in source_table.chunks]
    ends = np.cumsum([chunk.num_rows for chunk in chunks])
    cuts = _cuts(source_table, samples_per_shard)
    number = 0
    while some := list(islice(cuts, SHARDS_IN_A_FILE)):
        first, (start, count) = some[0][0], some[-1]
        begin = int(np.searchsorted(ends, first, "right"))
        end = int(np.searchsorted(ends, start + count, "left")) + 1
        offset = int(ends[begin]) - chunks[begin].num_rows
        local = [(start - offset, count) for start, count in some]
        yield chunks[begin:end], local, _file_of(address, number), values
        number += SHARDS_IN_A_FILE


def _write_file(
    chunks: list[StoredTable], cuts: list[tuple[int, int]], address: str, values: str
) -> Iterator[pa.Table]:
    """Write a file of the plan with a row group for each cut, as a step."""
    yield from ()
    first, last = cuts[0][0], sum(cuts[-1])
    rows = pa.concat_tables([chunk.load() for chunk in chunks]).slice(first, last - first)
    table = without_addresses(rows)
    table = table.replace_schema_metadata({_VALUES: values.encode()})
    target = folder_at(address)
    with tempfile.TemporaryDirectory(prefix="perceiver-plan-") as folder:
        path = target if isinstance(target, Path) else Path(folder) / target.name
        with pq.ParquetWriter(path, table.schema) as writer:
            for start, count in cuts:
                writer.write_table(table.slice(start - first, count), row_group_size=count)
        if path != target:
            upload(path, target)


def shard_addresses(source_table: SourceTable, samples_per_shard: int) -> list[str] | None:
    """Return for each shard the addresses that its plan leaves out because they hold secrets.

    Args:
        source_table: All sources of the plan.
        samples_per_shard: The same number as in `write_plan`.

    Returns:
        A text for each shard, for `read_plan`, to be kept in memory only. None if nothing was left
        out.
    """
    if not any(chunk.stored.holds_secrets for chunk in source_table.chunks):
        return None
    table = source_table.table.select(["parts"])
    cuts = _cuts(source_table, samples_per_shard)
    return [json.dumps(addresses_of(table.slice(*cut))) for cut in cuts]


def _cuts(source_table: SourceTable, samples_per_shard: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the number of rows of each shard."""
    first = 0
    for split in SPLITS:
        last = first + source_table.counts().get(split, 0)
        for start in range(first, last, samples_per_shard):
            yield start, min(samples_per_shard, last - start)
        first = last


def plan_files(path: Path) -> list[Path]:
    """Return the files of a plan and those beside them. They are removed together."""
    own = [path] if path.exists() else []  # a file for workers that is no plan
    return own + sorted(path.parent.glob(f"{_escaped(path.name)}.*.parquet"))


def _file_of(path: str | Path, number: int) -> str:
    """Return the path or URL of the file of a plan that has a shard."""
    return f"{path}.{number // SHARDS_IN_A_FILE:05d}.parquet"


def _escaped(name: str) -> str:
    return "".join(f"[{mark}]" if mark in "*?[" else mark for mark in name)


def read_plan(
    path: str | Path,
    number: int,
    addresses: str | None = None,
    value_addresses: Mapping[str, str] | None = None,
) -> list[SourceRow]:
    """Read the samples of one shard, with their values from the listing.

    Args:
        path: The path or URL of the plan.
        number: The number of the shard in the plan.
        addresses: The shard's text from `shard_addresses`.
        value_addresses: The addresses from `SourceTable.value_addresses`.
    """
    with opened(_file_of(path, number)) as file, pq.ParquetFile(file) as parquet:
        about = parquet.schema_arrow.metadata
        rows = parquet.read_row_group(number % SHARDS_IN_A_FILE).to_pylist()
    if addresses is not None:
        parts = [part for row in rows for part in row["parts"]]
        for part, address in zip(parts, json.loads(addresses), strict=True):
            part["address"] = address and os.fsencode(address)
    values = json.loads(about[_VALUES]).get(rows[0]["split"]) if rows else None
    if values and value_addresses:
        values["path"] = value_addresses.get(values["path"], values["path"])
    held: Any = (
        read_row_values(values, [row["row"] for row in rows])
        if values
        else (({}, {}) for _ in rows)
    )
    return [_source_row(row, *one) for row, one in zip(rows, held, strict=True)]


def _source_row(row: dict[str, Any], values: dict[str, Any], inline: dict[str, bytes]) -> SourceRow:
    parts = tuple(map(SourceFile.of, row["parts"]))
    return SourceRow(
        row["split"], os.fsdecode(row["uri"]), row["target"], row["row"], parts, values, inline
    )
