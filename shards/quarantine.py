"""Sources set aside with a reason, so that none is lost and each can be tried again."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

import pyarrow as pa

from shards.errors import ShardError
from shards.files import AtomicFile
from shards.parquet import decode_parquet, encode_parquet
from shards.set_files import read_file

QUARANTINE_FILE = "quarantine.parquet"

MAX_QUARANTINE_BYTES = 1 << 30

_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("source_uri", "split", "reason", "traceback")]
)


@dataclass(frozen=True, order=True)
class Quarantined:
    """A source that gave no sample.

    Attributes:
        source_uri: The file or row.
        split: The split that the sample would have belonged to.
        reason: One line for a person.
        traceback: The traceback of the decoder; empty if no decoder ran.
    """

    source_uri: str
    split: str
    reason: str
    traceback: str


def write_quarantine(path: Path, rows: Iterable[Quarantined]) -> None:
    """Write `rows`, sorted by source URI, atomically to the Parquet file `path`.

    Raises:
        ShardError: The file cannot be written.
    """
    with AtomicFile(path) as file:
        file.write(encode_quarantine([quarantine_table(rows)]))


def encode_quarantine(tables: Iterable[pa.Table]) -> bytes:
    """Return the rows of some `quarantine_table`, sorted by source URI, as a Parquet file."""
    table = pa.concat_tables(tables).sort_by([(name, "ascending") for name in _SCHEMA.names])
    return encode_parquet(table)


def quarantine_table(rows: Iterable[Quarantined]) -> pa.Table:
    """Return the rows as an Arrow table, one column for each field of `Quarantined`.

    Characters that UTF-8 cannot encode (lone surrogates in a file's name) become backslash escapes.
    """
    columns = zip(*(map(_spellable, astuple(row)) for row in rows), strict=True)
    arrays = [list(column) for column in columns] or [[] for _ in _SCHEMA]
    return pa.table(dict(zip(_SCHEMA.names, arrays, strict=True)), schema=_SCHEMA)


def read_quarantine_table(path: Path) -> pa.Table:
    """Read a quarantine file as a `quarantine_table`. Raises like `read_quarantine`."""
    return decode_quarantine(read_file(path.parent, path.name, MAX_QUARANTINE_BYTES), str(path))


def decode_quarantine(data: bytes, where: str) -> pa.Table:
    """Decode a quarantine file as a `quarantine_table`.

    Args:
        data: The whole file.
        where: The name of the file in errors.

    Raises:
        ShardError: The file is damaged.
    """
    table = decode_parquet(data, _SCHEMA, where)
    if any(column.null_count for column in table.columns):
        raise ShardError(f"{where}: a field is missing; do not use this set, or make it again")
    return table


def read_quarantine(path: Path) -> list[Quarantined]:
    """Read the rows of a quarantine file, in the file's order.

    Raises:
        ShardError: The file is damaged.
        FileNotFoundError: The file does not exist.
    """
    return [Quarantined(**row) for row in read_quarantine_table(path).to_pylist()]


def _spellable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
