"""Listings as sources: each row is a sample, and its media lie in files or in the row itself."""

import hashlib
import json
import os
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.config.data import SPLITS, DataConfig, absolute
from pipeline.errors import UserError
from pipeline.preprocess.sources.addresses import file_name, filesystem_of, folder_of
from pipeline.preprocess.sources.columns import Column, wanted_columns
from pipeline.preprocess.sources.parts import opened
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.row_files import RowFiles
from pipeline.preprocess.sources.rows import Batch, TableFile, open_listing
from pipeline.preprocess.sources.scan import SourceScan
from pipeline.preprocess.sources.stored_tables import StoredTable, TableStore
from pipeline.preprocess.sources.tables import (
    BATCH_ROWS,
    FOUND_SCHEMA,
    REFUSED_SCHEMA,
    RUN_ROWS,
    Rows,
    binary_parts,
    concat,
    first_refused,
    one_chunk,
    split_column,
)
from pipeline.preprocess.sources.values import InlineValues
from pipeline.preprocess.sources.walk import changed

MAX_NAME_BYTES = 4096
BYTES_TOGETHER = 32 << 20
MAX_SHOWN = 100
"""A reason quotes at most so many bytes of a wrong value."""
SPLIT_NAMES = {b"train": 0, b"validation": 1, b"valid": 1, b"val": 1, b"dev": 1, b"test": 2}
_PARQUET_END = 8
"""The bytes after a Parquet file's footer: its length (4, little-endian) and a magic number (4)."""


def find_in_listing(data: DataConfig, source: str, setting: str, store: TableStore) -> SourceScan:
    """Find the samples of a listing, in its order.

    The name of a row is its key. Without a key it is the path of the row's first file, or else the
    name of the listing with the index of the row, from 0.

    Args:
        data: The modalities, the columns and the target.
        source: The path or URL of a `.csv`, `.parquet` or `.jsonl` file.
        setting: The field of the configuration that names the listing, for errors.
        store: Runs the reading of rows.

    Raises:
        UserError: There is no such file, it is damaged, lacks a column, or has no row that can be
            used.
    """
    table_file = open_listing(source, setting, wanted_columns(data, source, setting))
    inline = tuple(column for column in table_file.columns if column.is_inline)
    # The workers read the bytes of files that a Parquet file holds; they are not read here.
    heavy = table_file.suffix == ".parquet" and any(c.role == "bytes" for c in table_file.columns)
    light = [c for c in table_file.columns if not (heavy and c.role == "bytes")]
    read = table_file.only(tuple(light))
    content, mtime = _parquet_state(source) if heavy else (b"", None)
    reach = Reach(absolute(folder_of(source)), data.allow, data.max_file_bytes)
    reader = RowReader(read, reach, content, mtime, is_inline=bool(inline))
    if table_file.suffix == ".parquet":
        results = store.run(_read_groups, ((reader, *piece) for piece in read.pieces(RUN_ROWS)))
    else:
        results = store.run(_read_batches, ((reader, some) for some in _together(read.batches())))
    tables: list[StoredTable] = []
    refusals: list[pa.Table] = []
    label_names: dict[str, set[str]] = {}
    for made, (more, names) in results:
        tables.extend(made)
        refusals.append(more)
        for split, labels in names.items():
            label_names.setdefault(split, set()).update(labels)
    refused = concat(refusals, REFUSED_SCHEMA)
    if not tables:
        raise UserError(f"{setting}={source}: no row can be used{first_refused(refused)}")
    return SourceScan(
        tables,
        refused,
        folder_of(source),
        is_listing=True,
        values=InlineValues(table_file.only(inline)) if inline else None,
        label_names=label_names,
    )


def _together(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    """Yield batches in groups, of which a step takes one."""
    some: list[Batch] = []
    rows = size = 0
    for batch in batches:
        some.append(batch)
        rows += len(batch.arrays[0])
        size += sum(array.nbytes for array in batch.arrays)
        if rows >= BATCH_ROWS or size >= BYTES_TOGETHER:
            yield some
            some, rows, size = [], 0, 0
    if some:
        yield some


_Made: TypeAlias = Generator[pa.Table, None, tuple[pa.Table, dict[str, set[str]]]]


def _read_groups(reader: "RowReader", start: int, groups: list[int]) -> _Made:
    """Turn row groups of a Parquet file into samples, as a step."""
    return reader.read(reader.table_file.batches_of(start, groups))


def _read_batches(reader: "RowReader", batches: list[Batch]) -> _Made:
    """Turn rows into samples, as a step."""
    return reader.read(iter(batches))


def _parquet_state(source: str) -> tuple[bytes, str]:
    """Return a digest of a Parquet file's footer, and the time of the file's last change.

    The content itself is not read. The footer has the offset, sizes and extremes of every column
    chunk.
    """
    filesystem, path = filesystem_of(source)
    info = filesystem.info(path)
    with opened(source) as file:
        file.seek(-_PARQUET_END, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-_PARQUET_END - length, os.SEEK_END)
        hashed = hashlib.blake2b(file.read(length), digest_size=16)
    hashed.update(b"\0%d" % (info.get("size") or 0))
    return hashed.digest(), changed(info)


class RowReader:
    """Turns batches of rows into samples and refusals.

    Args:
        table_file: The listing with the columns to read.
        reach: What its rows may name.
        content: A digest of the columns that are not read. It goes into the digest of every row.
        mtime: The time of the file that holds these columns, or None.
        is_inline: Whether rows hold values that the samples need.
    """

    def __init__(
        self,
        table_file: TableFile,
        reach: Reach,
        content: bytes,
        mtime: str | None,
        *,
        is_inline: bool,
    ) -> None:
        self.table_file = table_file
        self._columns = table_file.columns
        self._content, self._mtime = content, mtime
        self._is_inline = is_inline
        self._name = os.fsencode(file_name(table_file.source))
        self._files = RowFiles(reach)
        self._samples, self._refused = Rows(FOUND_SCHEMA), Rows(REFUSED_SCHEMA)
        self._label_names: dict[str, set[str]] = {}

    def __reduce__(self) -> tuple:
        make = partial(RowReader, is_inline=self._is_inline)
        return make, (self.table_file, self._files.reach, self._content, self._mtime)

    def read(self, batches: Iterator[Batch]) -> _Made:
        """Yield the samples of some batches.

        Returns:
            The refused rows, and the labels of each split.
        """
        for batch in batches:
            self._take(batch)
            yield from self._samples.full()
        yield from self._samples.rest()
        refused, label_names = concat(list(self._refused.rest()), REFUSED_SCHEMA), self._label_names
        self._label_names = {}
        return refused, label_names

    def _take(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        for line, problem in batch.unread:
            self._refused.append(self._name + b"#line %d" % line, None, problem)
        count = len(batch.arrays[0])
        reasons = _reasons(self._columns, batch)
        by_use = {
            column.use: array.to_pylist()
            for column, array in zip(self._columns, batch.arrays, strict=True)
            if not column.is_inline
        }
        paths = {
            use: by_use[use]
            for use in (column.use for column in self._columns if column.role == "path")
        }
        keys, labels = by_use.get("key"), by_use.get("target")
        splits, groups = by_use.get("split"), by_use.get("group")
        label_lists = [
            array.to_pylist()
            for column, array in zip(self._columns, batch.arrays, strict=True)
            if column.role == "labels"
        ]
        digests = list(self._digests(batch)) if self._is_inline else [None] * count
        for index in range(count):
            row = batch.start + index
            reason: str | None = reasons.get(index)
            split = 0 if splits is None else SPLIT_NAMES.get(splits[index])
            if splits is not None and reason is None and split is None:
                given = splits[index][:MAX_SHOWN].decode(errors="replace")
                reason = f"split {given!r} is none of train, validation, test"
            parts: list[dict[str, Any]] = []
            if reason is None:
                parts, reason = self._files.parts({use: paths[use][index] for use in paths})
            name = self._row_name(keys and keys[index], paths, index, row)
            if len(name) > MAX_NAME_BYTES:
                reason = reason or f"its name has {len(name)} bytes, more than {MAX_NAME_BYTES}"
                name = self._name + b"#%d" % row
            if reason is not None:
                self._refused.append(name, None if split is None else SPLITS[split], reason)
                continue
            assert split is not None  # a missing split has a reason
            label = labels and labels[index]
            number = row if self._is_inline else None
            group = groups and groups[index]
            self._samples.append(
                split, name, label, group, number, digests[index], self._mtime, parts
            )
            for names in label_lists:
                self._label_names.setdefault(SPLITS[split], set()).update(names[index])

    def _row_name(
        self, key: bytes | None, paths: dict[str, list[bytes | None]], index: int, row: int
    ) -> bytes:
        if key is not None:
            return self._files.named(key)
        if not self._is_inline:
            path = next((given[index] for given in paths.values() if given[index]), None)
            if path is not None:
                return self._files.named(path)
        return self._name + b"#%d" % row

    def _digests(self, batch: Batch) -> Iterator[bytes]:
        """Yield a digest of the values of each row."""
        inline = [
            list(_value_bytes(array))
            for column, array in zip(self._columns, batch.arrays, strict=True)
            if column.is_inline
        ]
        for index in range(len(batch.arrays[0])):
            hashed = hashlib.blake2b(self._content, digest_size=16)
            if self._content:  # the row's index says which bytes of the file are its own
                hashed.update(b"%d" % (batch.start + index))
            for values in inline:
                hashed.update(b"%d\0" % len(values[index]))
                hashed.update(values[index])
            yield hashed.digest()


def _reasons(columns: tuple[Column, ...], batch: Batch) -> dict[int, str]:
    """Return the first reason why a row cannot be used, by its index in the batch."""
    reasons = dict(batch.reasons)
    for column, array, wrong in zip(columns, batch.arrays, batch.wrong, strict=True):
        for index in np.flatnonzero(wrong).tolist():
            reasons.setdefault(
                index, f"column {column.name!r} holds what is no {_ROLE_WORDS[column.role]}"
            )
        if column.required and array.null_count:
            missing = array.is_null().to_numpy(zero_copy_only=False)
            for index in np.flatnonzero(missing).tolist():
                reasons.setdefault(index, f"column {column.name!r} has no value")
    return reasons


_ROLE_WORDS = {
    "path": "path",
    "bytes": "bytes",
    "text": "text",
    "label": "name",
    "labels": "list of names",
    "number": "number within float32",
    "numbers": "list of numbers within float32",
    "category": "name",
    "tokens": "list of token numbers",
}


def _value_bytes(array: pa.Array) -> Iterator[bytes | memoryview]:
    """Yield the value of each row as bytes. A null differs from every value."""
    if pa.types.is_binary(array.type):
        offsets, data = binary_parts(array.fill_null(b""))
        ends = offsets.tolist()
        there = array.is_valid().to_pylist()
        for start, end, is_there in zip(ends, ends[1:], there, strict=False):
            yield data[start:end] if is_there else b"\0null"
    else:
        for value in array.to_pylist():
            yield json.dumps(value).encode()


def unique(samples: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the samples whose name is new, and refusals of those whose name an earlier row has."""
    if not samples.num_rows:
        return samples, REFUSED_SCHEMA.empty_table()
    codes = one_chunk(samples["name"]).dictionary_encode()
    _, first = np.unique(codes.indices.to_numpy(), return_index=True)
    if len(first) == samples.num_rows:
        return samples, REFUSED_SCHEMA.empty_table()
    again = np.ones(samples.num_rows, bool)
    again[first] = False
    extra = samples.filter(pa.array(again))
    names, codes = extra["name"], extra["split"].to_numpy()
    reason = "an earlier row has this name; name rows by data.columns.key"
    refused = pa.table(
        {
            "uri": names,
            "split": split_column(codes).cast(pa.string()),
            "reason": pa.array([reason]).take(pa.array(np.zeros(len(names), np.int64))),
        },
        schema=REFUSED_SCHEMA,
    )
    return samples.filter(pa.array(~again)), refused
