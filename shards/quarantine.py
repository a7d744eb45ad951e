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

_MAX_BYTES = 1 << 30

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

    Characters that UTF-8 cannot encode (lone surrogates in a file's name) become backslash escapes.

    Raises:
        ShardError: The file cannot be written.
    """
    _write(path, [quarantine_table(rows)])


def merge_quarantine(path: Path, parts: Iterable[Path], more: pa.Table) -> int:
    """Write the rows of quarantine files and of a `quarantine_table` into one file.

    Args:
        path: The file to write.
        parts: The quarantine files to read.
        more: A `quarantine_table` with further rows.

    Returns:
        The number of rows in the file.

    Raises:
        ShardError: A part is damaged, or the file cannot be written.
    """
    return _write(path, [*map(read_quarantine_table, parts), more])


def quarantine_table(rows: Iterable[Quarantined]) -> pa.Table:
    """Return the rows as an Arrow table, one column for each field of `Quarantined`."""
    columns = zip(*(map(_spellable, astuple(row)) for row in rows), strict=True)
    arrays = [list(column) for column in columns] or [[] for _ in _SCHEMA]
    return pa.table(dict(zip(_SCHEMA.names, arrays, strict=True)), schema=_SCHEMA)


def _write(path: Path, tables: list[pa.Table]) -> int:
    table = pa.concat_tables(tables).sort_by([(name, "ascending") for name in _SCHEMA.names])
    with AtomicFile(path) as file:
        file.write(encode_parquet(table))
    return table.num_rows


def read_quarantine_table(path: Path) -> pa.Table:
    """Read a quarantine file as a `quarantine_table`. Raises like `read_quarantine`."""
    table = decode_parquet(read_file(path.parent, path.name, _MAX_BYTES), _SCHEMA, str(path))
    if any(column.null_count for column in table.columns):
        raise ShardError(f"{path}: a field is missing; do not use this set, or make it again")
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
