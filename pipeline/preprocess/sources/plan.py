"""The plan says which samples make which shard. Workers read it by shard, from Parquet files.

A worker reads the whole footer of a file to find one shard in it, so a file has few shards.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.preprocess.sources.listing import SourceTable
from pipeline.preprocess.sources.parts import SourceFile, opened
from pipeline.preprocess.sources.tables import addresses_of, without_addresses
from pipeline.preprocess.sources.values import InlineValues, read_row_values

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
    table = without_addresses(source_table.table)
    table = table.replace_schema_metadata({_VALUES: json.dumps(values).encode()})
    cuts = list(_cuts(table, samples_per_shard))
    for first in range(0, len(cuts), SHARDS_IN_A_FILE):
        with pq.ParquetWriter(_file_of(path, first), table.schema) as writer:
            for start, count in cuts[first : first + SHARDS_IN_A_FILE]:
                writer.write_table(table.slice(start, count), row_group_size=count)
    return len(cuts)


def shard_addresses(source_table: SourceTable, samples_per_shard: int) -> list[str] | None:
    """Return for each shard the addresses that its plan leaves out because they hold secrets.

    Args:
        source_table: All sources of the plan.
        samples_per_shard: The same number as in `write_plan`.

    Returns:
        A text for each shard, for `read_plan`, to be kept in memory only. None if nothing was left
        out.
    """
    if not any(addresses_of(source_table.table)):
        return None
    cuts = _cuts(source_table.table, samples_per_shard)
    return [json.dumps(addresses_of(source_table.table.slice(*cut))) for cut in cuts]


def _cuts(table: pa.Table, samples_per_shard: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the number of rows of each shard."""
    codes = table["split"].combine_chunks().indices.to_numpy() if table.num_rows else np.array([])
    borders = np.flatnonzero(np.diff(codes)) + 1
    for first, last in zip([0, *borders], [*borders, table.num_rows], strict=True):
        for start in range(int(first), int(last), samples_per_shard):
            yield start, min(samples_per_shard, int(last) - start)


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
