"""Reads a listing (CSV, Parquet or JSON Lines) in batches of rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.media.errors import MediaError
from pipeline.preprocess.sources.addresses import base_of, filesystem_of
from pipeline.preprocess.sources.columns import Column, typed_role
from pipeline.preprocess.sources.csv_blocks import (
    BATCH_BYTES,
    BATCH_ROWS,
    CsvPiece,
    csv_pieces,
)
from pipeline.preprocess.sources.parts import exists, opened
from pipeline.preprocess.sources.row_groups import group_batches
from pipeline.preprocess.sources.row_lines import csv_names, json_lines
from pipeline.preprocess.sources.typed import TYPES, read_values, to_role
from pipeline.preprocess.sources.walk import is_local
from shards.errors import ShardError
from shards.parquet_groups import open_parquet
from shards.parquet_pages import REMEDY
from shards.redaction import without_secrets

SUFFIXES = (".csv", ".parquet", ".jsonl")
MAX_NAME_LENGTH = 1000
MAX_SHOWN_NAME = 100


LISTING_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError, ShardError, MediaError)
"""The errors for which the whole listing is refused."""


@dataclass(frozen=True)
class Batch:
    """Some consecutive rows of a listing.

    Attributes:
        start: The index of the first row, from 0.
        arrays: One array for each column, in the type of its role.
        wrong: For each column, which rows hold a wrong value, bool `[rows]`.
        reasons: Why a row as a whole cannot be read, by its index in the batch.
        unread: The lines that gave no row: their number, from 1, and the reason.
    """

    start: int
    arrays: list[pa.Array]
    wrong: list[np.ndarray]
    reasons: dict[int, str] = field(default_factory=dict)
    unread: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class TableFile:
    """A listing and the columns to read from it.

    Attributes:
        source: The path or URL.
        setting: The field of the configuration that names the listing, for errors.
        columns: The columns, with the roles that their types allow.
    """

    source: str
    setting: str
    columns: tuple[Column, ...]

    @property
    def suffix(self) -> str:
        """The suffix of the format: `.csv`, `.parquet` or `.jsonl`."""
        suffix = suffix_of(self.source)
        assert suffix is not None  # otherwise it would not be a listing
        return suffix

    def batches(self) -> Iterator[Batch]:
        """Yield all rows in order.

        Raises:
            UserError: The file as a whole is damaged.
        """
        if self.suffix == ".parquet":
            every = [group for _, groups in self.pieces(BATCH_ROWS) for group in groups]
            yield from self.batches_of(0, every)
            return
        reader = _csv_batches if self.suffix == ".csv" else _json_batches
        try:
            yield from reader(self)
        except LISTING_ERRORS as error:
            raise self._error(f"cannot be read: {_reason(error)}") from None

    def pieces(self, rows: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the first row and the row groups of pieces of a Parquet file, of some rows each.

        Raises:
            UserError: The file is damaged.
        """
        try:
            with opened(self.source) as file:
                about = open_parquet(file, "it").metadata
        except LISTING_ERRORS as error:
            raise self._error(f"cannot be read: {_reason(error)}") from None
        start, count, groups = 0, 0, list[int]()
        for group in range(about.num_row_groups):
            if groups and count + about.row_group(group).num_rows > rows:
                yield start, groups
                start, count, groups = start + count, 0, []
            groups.append(group)
            count += about.row_group(group).num_rows
        yield start, groups

    def batches_of(self, start: int, groups: list[int]) -> Iterator[Batch]:
        """Yield the rows of some row groups of a Parquet file; see `pieces`.

        Raises:
            UserError: The file as a whole is damaged.
        """
        try:
            with opened(self.source) as file:
                yield from _parquet_batches(self, file, start, groups)
        except LISTING_ERRORS as error:
            raise self._error(f"cannot be read: {_reason(error)}") from None

    def only(self, columns: tuple[Column, ...]) -> "TableFile":
        """Return the same listing with fewer columns."""
        return replace(self, columns=columns)

    def _error(self, text: str) -> UserError:
        return UserError(f"{self.setting}={self.source}: {text}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(REMEDY)


def suffix_of(source: str) -> str | None:
    """Return the suffix that makes a path or URL a listing; None if it is not one."""
    names = (base_of(source).lower(), without_secrets(source).lower())
    return next((s for s in SUFFIXES if any(name.endswith(s) for name in names)), None)


def open_listing(source: str, setting: str, columns: list[Column]) -> TableFile:
    """Check that a listing has the columns, and find out their roles.

    Args:
        source: The path or URL of the listing.
        setting: The field of the configuration that names it, for errors.
        columns: The columns to read.

    Raises:
        UserError: There is no such file, it is damaged, lacks a column, or a column has a wrong
            type.
    """
    table_file = TableFile(source, setting, tuple(columns))
    filesystem, path = filesystem_of(source)
    if not exists(filesystem, path):
        raise table_file._error("no such file")
    if is_local(filesystem) and not filesystem.isfile(path):
        raise table_file._error("not a file")
    try:
        types = _column_types(table_file)
    except LISTING_ERRORS as error:
        raise table_file._error(f"cannot be read: {_reason(error)}") from None
    resolved = []
    for column in columns:
        kinds = [kind for name, kind in types if name == column.name]
        if not kinds:
            names = ", ".join(repr(name[:MAX_SHOWN_NAME]) for name, _ in types[:50])
            raise table_file._error(f"no column {column.name!r} ({column.setting}); it has {names}")
        if len(kinds) > 1:
            raise table_file._error(f"{len(kinds)} columns are named {column.name!r}; rename one")
        try:
            resolved.append(replace(column, role=typed_role(column, kinds[0])))
        except ValueError as error:
            raise table_file._error(f"column {column.name!r} ({column.setting}) {error}") from None
    return replace(table_file, columns=tuple(resolved))


def _column_types(table_file: TableFile) -> list[tuple[str, Any]]:
    """Return the names and Arrow types of all columns. Untyped columns count as text."""
    if table_file.suffix == ".parquet":
        with opened(table_file.source) as file:
            schema = open_parquet(file, "it").schema_arrow
        return list(zip(schema.names, schema.types, strict=True))
    if table_file.suffix == ".csv":
        with opened(table_file.source) as file:
            names = csv_names(file)
        return [(name, pa.string()) for name in names]
    return _json_types(table_file)


# --- CSV ---


def _csv_batches(table_file: TableFile) -> Iterator[Batch]:
    with opened(table_file.source) as file:
        names = csv_names(file)
    indices = [names.index(column.name) for column in table_file.columns]
    start = 0
    with opened(table_file.source) as file:
        for piece in csv_pieces(file, len(names), indices):
            batch = _from_csv(table_file, start, piece)
            start += len(batch.arrays[0])
            yield batch


def _from_csv(table_file: TableFile, start: int, piece: CsvPiece) -> Batch:
    """Convert rows. An empty cell means missing; in a `labels` column it means no labels."""
    pairs = []
    for column, values in zip(table_file.columns, piece.columns, strict=True):
        if column.role != "labels":
            empty = pc.equal(pc.binary_length(values), 0)
            values = pc.if_else(empty, pa.scalar(None, pa.binary()), values)
        pairs.append(to_role(values, column.role, column.separator))
    return Batch(
        start, [array for array, _ in pairs], [bad for _, bad in pairs], unread=piece.unread
    )


# --- Parquet ---


def _typed(table_file: TableFile, start: int, rows: pa.RecordBatch) -> Batch:
    pairs = [
        to_role(rows.column(column.name), column.role, column.separator)
        for column in table_file.columns
    ]
    return Batch(start, [array for array, _ in pairs], [bad for _, bad in pairs])


def _parquet_batches(
    table_file: TableFile, file: BinaryIO, start: int, groups: list[int]
) -> Iterator[Batch]:
    names = list(dict.fromkeys(column.name for column in table_file.columns))
    parquet = open_parquet(file, "it")
    for group in groups:
        for rows in group_batches(file, parquet, group, names, BATCH_ROWS):
            yield _typed(table_file, start, rows)
            start += rows.num_rows


# --- JSON Lines ---


def _json_types(table_file: TableFile) -> list[tuple[str, Any]]:
    """Return the columns of the first rows. Only whether a column holds text or lists matters."""
    kinds = {column.name: TYPES[column.role] for column in table_file.columns}
    seen: dict[str, pa.DataType | None] = {}
    for value, _ in json_lines(table_file.source):
        if isinstance(value, str):
            continue
        for name, one in value.items():
            is_wanted = name in kinds
            if (len(seen) < MAX_JSON_COLUMNS and len(name) <= MAX_NAME_LENGTH) or is_wanted:
                if one is not None and seen.get(name) is None:
                    seen[name] = _json_type(kinds.get(name), one)
                else:
                    seen.setdefault(name, None)
        if all(seen.get(name) is not None for name in kinds):
            break
    return [(name, kind or _json_type(kinds.get(name), None)) for name, kind in seen.items()]


MAX_JSON_COLUMNS = 10_000


def _json_type(wanted: pa.DataType | None, value: Any) -> pa.DataType:
    """Return the type of the role, since each value is checked later. Tokens may also be a text."""
    if wanted == TYPES["tokens"] and isinstance(value, str):
        return pa.string()
    return pa.string() if wanted in (None, pa.binary()) else wanted


def _json_batches(table_file: TableFile) -> Iterator[Batch]:
    rows: list[list[Any]] = []
    reasons: dict[int, str] = {}
    start = size = 0
    for value, length in json_lines(table_file.source):
        if isinstance(value, str):
            reasons[len(rows)] = value
            value = {}
        rows.append([value.get(column.name) for column in table_file.columns])
        size += length
        if len(rows) == BATCH_ROWS or size > BATCH_BYTES:
            yield _from_json(table_file, start, rows, reasons)
            start, rows, reasons, size = start + len(rows), [], {}, 0
    if rows:
        yield _from_json(table_file, start, rows, reasons)


def _from_json(
    table_file: TableFile, start: int, rows: list[list[Any]], reasons: dict[int, str]
) -> Batch:
    arrays, wrong = [], []
    for column, given in zip(table_file.columns, zip(*rows, strict=True), strict=True):
        array, bad = read_values(given, column.role, column.separator)
        arrays.append(array)
        wrong.append(bad)
    return Batch(start, arrays, wrong, reasons)
