"""An open shard set: its manifest and its list of shards."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.added_positions import read_added
from shards.arrow_values import text_scalar
from shards.digests import sha256_hex
from shards.errors import ShardError
from shards.index import MAX_SHARD_TABLE_BYTES, decode_shard_table
from shards.location import Location
from shards.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest
from shards.names import BY_CONTENT, BY_NUMBER, FileNames
from shards.positions import (
    REMEDY,
    PositionSpec,
    decode_position_table,
)
from shards.quarantine import MAX_QUARANTINE_BYTES, decode_quarantine
from shards.remote_tars import RemoteReading
from shards.set_files import map_file
from shards.shard_info import ShardInfo
from shards.shard_table_check import check_counts


@dataclass(frozen=True)
class ShardSet:
    """A published shard set. To open one of any size, two files are read.

    Attributes:
        location: The location of the set.
        manifest: The manifest of the set.
        names: How its files are named.
        shard_table: `shards.parquet`: one row for each shard, by number, with the columns of
            `ShardInfo`.
        remote: How readers of this set read it if it is not local; None is `RemoteReading()`.
    """

    location: Location
    manifest: Manifest
    names: FileNames
    shard_table: pa.Table
    remote: RemoteReading | None = None

    @classmethod
    def open(cls, path: str | Path | Location, remote: RemoteReading | None = None) -> Self:
        """Open the set in a local folder or at any fsspec URL.

        Args:
            path: The folder or URL of the set.
            remote: How its readers read it if it is not local; None is `RemoteReading()`.

        Raises:
            ShardError: There is no set, it has another format version, or its manifest or
                `shards.parquet` is damaged.
        """
        location = path if isinstance(path, Location) else Location(path)
        try:
            data = location.read(MANIFEST_FILE, MAX_MANIFEST_BYTES)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _no_set(location) from error
        manifest = Manifest.decode(data, f"{location}/{MANIFEST_FILE}")
        names, data = _read_shard_table(location, manifest)
        where = f"{location}/{names.shard_table(manifest)}"
        if sha256_hex(data) != manifest.shards_sha256:
            raise ShardError(
                f"{where}: sha256 differs from {MANIFEST_FILE}; run 'perceiver preprocess' again"
            )
        shard_table = decode_shard_table(data, where)
        check_counts(shard_table, manifest.counts, where)
        return cls(location, manifest, names, shard_table, remote)

    @property
    def digest(self) -> str:
        """The name of the set: the sha256 of its `manifest.json`, 64 hexadecimal digits."""
        return self.manifest.digest

    def require_unchanged(self) -> None:
        """Raise ShardError if the set was replaced or removed."""
        try:
            data = self.location.read(MANIFEST_FILE, MAX_MANIFEST_BYTES)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _no_set(self.location) from error
        found = Manifest.decode(data, f"{self.location}/{MANIFEST_FILE}").digest
        if found != self.digest:
            raise _replaced(self.location, found, self.digest)

    def num_samples(self, split: str) -> int:
        """Return the samples in `split`. Raises ShardError if the set has no such split."""
        try:
            return self.manifest.counts[split]
        except KeyError as error:
            splits = ", ".join(sorted(self.manifest.counts)) or "none"
            raise ShardError(
                f"{self.location}: no split {split!r}; it has {splits}: name one of these"
            ) from error

    def __reduce__(self) -> tuple:
        # Another process reads two small files; a shard table may have a million rows to pickle.
        return _reopen, (self.location, self.digest, self.remote)

    def rows(self) -> Iterator[ShardInfo]:
        """Yield the facts about each shard, by number."""
        for batch in self.shard_table.to_batches(max_chunksize=1000):
            yield from (ShardInfo(**row) for row in batch.to_pylist())

    def quarantine_table(self) -> pa.Table:
        """Return the sources that gave no sample, as a `quarantine_table`.

        Raises:
            ShardError: The file is missing or damaged.
        """
        name = self.names.quarantine(self.manifest)
        where = f"{self.location}/{name}"
        try:
            data = self.location.read(name, MAX_QUARANTINE_BYTES)
        except FileNotFoundError as error:
            raise ShardError(f"{where}: missing; run 'perceiver preprocess' again") from error
        return decode_quarantine(data, where)

    def shards(self, split: str) -> pa.Table:
        """Return the rows of `shard_table` for `split`. Raises ShardError like `num_samples`."""
        self.num_samples(split)
        rows = pc.indices_nonzero(pc.equal(self.shard_table["split"], text_scalar(split)))
        first, num_rows = (rows[0].as_py(), len(rows)) if len(rows) else (0, 0)
        if num_rows and rows[-1].as_py() == first + num_rows - 1:
            return self.shard_table.slice(
                first, num_rows
            )  # without a copy; rows are mostly adjacent
        return self.shard_table.take(rows)

    def holds(self, spec: PositionSpec) -> bool:
        """Return whether the set has a position table, from the beginning or added later.

        Raises:
            ShardError: The list of added tables is damaged.
        """
        return spec.digest in self.manifest.positions or spec in read_added(self.location)

    def position_table(self, spec: PositionSpec) -> np.ndarray:
        """Return a position table: float32 [tokens, channels], memory-mapped in a local set.

        Args:
            spec: The parameters of the table.

        Raises:
            ShardError: The set was made with other Fourier features, or the file is damaged.
        """
        sha256 = self.manifest.position_sha256.get(spec.digest)
        if sha256 is None:
            added = read_added(self.location)
            sha256 = added.get(spec)
        if sha256 is None:
            held = (*self.manifest.positions.values(), *added)
            there = " and ".join(map(str, held))[:1000] or "no position table"
            raise ShardError(
                f"{self.location}: the model needs {spec}, the set has {there}; {REMEDY}"
            )
        name = self.names.position_table(spec.digest, sha256)
        where = f"{self.location}/{name}"
        try:
            if self.location.folder:
                data: bytes | memoryview = map_file(self.location.folder, name)
            else:
                data = self.location.read(name, spec.max_file_bytes)
        except FileNotFoundError as error:
            raise ShardError(f"{where}: missing; {REMEDY}") from error
        except OSError as error:
            raise ShardError(f"{where}: cannot be read ({error.strerror}); {REMEDY}") from error
        return decode_position_table(data, spec, where, sha256)


def _read_shard_table(location: Location, manifest: Manifest) -> tuple[FileNames, bytes]:
    """Return how the files of a set are named, and the bytes of its table of shards.

    The names that are usual in such a place are tried first.
    """
    usual = (BY_NUMBER, BY_CONTENT) if location.folder else (BY_CONTENT, BY_NUMBER)
    for names in usual:
        with suppress(FileNotFoundError):
            return names, location.read(names.shard_table(manifest), MAX_SHARD_TABLE_BYTES)
    where = f"{location}/{usual[0].shard_table(manifest)}"
    raise ShardError(f"{where}: missing; run 'perceiver preprocess' again")


def _reopen(location: Location, digest: str, remote: RemoteReading | None) -> ShardSet:
    shard_set = ShardSet.open(location, remote)
    if shard_set.digest != digest:
        raise _replaced(location, shard_set.digest, digest)
    return shard_set


def _replaced(location: Location, found: str, digest: str) -> ShardError:
    return ShardError(
        f"{location}: replaced by the set {found} while {digest} was in use; start again"
    )


def _no_set(location: Location) -> ShardError:
    if not location.exists():
        hint = "there is nothing here; check the path"
    elif location.exists("index"):
        hint = "an unfinished shard set; run 'perceiver preprocess' again to finish it"
    else:
        hint = "not a shard set; if these are raw media, run 'perceiver preprocess' on them first"
    return ShardError(f"{location}: no {MANIFEST_FILE}: {hint}")
