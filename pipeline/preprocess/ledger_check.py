"""Checks a ledger's content. Anyone may have written the file, so it is not trusted."""

import json
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import SPLITS
from pipeline.preprocess.identity import READING
from pipeline.preprocess.sources import StoredTable, TableStore
from pipeline.preprocess.sources.partitions import by_hash, count_partitions
from shards.plain import is_name, is_printable
from shards.shard_table_check import SHA256_PATTERN

_MAX_ADDRESS = 10_000


def read_seconds(text: bytes) -> float:
    """Read the duration of a run.

    Raises:
        ValueError: It is not a number, negative or not finite.
    """
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError("seconds is no time")
    return seconds


def read_addresses(text: bytes) -> dict[str, str]:
    """Read the folder, listing or URL of each split.

    Raises:
        ValueError: The text is something else.
    """
    addresses = _object(text)
    for split, address in addresses.items():
        if split not in SPLITS or not is_printable(address) or not 0 < len(address) <= _MAX_ADDRESS:
            raise ValueError("places is not addresses by splits")
    return addresses


def read_reading(text: bytes) -> dict[str, Any]:
    """Read the fields that say what may be read. Their values are checked with the section `data`.

    Raises:
        ValueError: The text is something else.
    """
    fields = _object(text)
    allowed = fields.get("allow", [])
    if not fields.keys() <= set(READING):
        raise ValueError("reading has a field that does not say what may be read")
    if not isinstance(allowed, list) or not all(map(is_printable, allowed)):
        raise ValueError("reading.allow is not a list of addresses")
    return fields


def check_rows(table: pa.Table, shards: pa.ChunkedArray) -> None:
    """Refuse a table with a row that cannot be true of this set.

    Args:
        table: The table of the ledger.
        shards: The numbers of the set's shards.

    Raises:
        ValueError: A row is wrong; the text names its column.
    """
    if table["uri"].null_count:
        raise ValueError("a URI is missing")
    if not all(map(is_name, pc.unique(table["split"]).to_pylist())):
        raise ValueError("the name of a split is not plain")
    known = table["sha256"].drop_null()
    if not pc.all(pc.match_substring_regex(known, SHA256_PATTERN), min_count=0).as_py():
        raise ValueError("sha256 is not 64 hexadecimal digits")
    if (pc.min(table["target"]).as_py() or 0) < 0:
        raise ValueError("a target is negative")
    numbers = table["shard"].drop_null()
    if not pc.all(pc.is_in(numbers, value_set=shards.combine_chunks()), min_count=0).as_py():
        raise ValueError("a shard is not in the set")


def check_unique(store: TableStore, tables: Sequence[StoredTable]) -> None:
    """Refuse tables of a ledger that have a URI twice.

    Raises:
        ValueError: There is such a URI.
    """
    partitions = by_hash(store, tables, "uri", count_partitions(tables))
    for _, is_unique in store.run(_is_unique, ((some,) for some in partitions if some)):
        if not is_unique:
            raise ValueError("a URI is twice there")


def _is_unique(tables: list[StoredTable]) -> Generator[pa.Table, None, bool]:
    yield from ()
    uris = pa.concat_tables([table.load(["uri"]) for table in tables])["uri"]
    return bool(pc.count_distinct(uris).as_py() == len(uris))


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, Mapping):
        raise ValueError("not an object")
    return dict(value)
