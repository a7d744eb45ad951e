"""The table of all sources, in pieces that lie outside this process's memory."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import SPLITS, absolute
from pipeline.preprocess.sources.digests import hash_column
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.stored_tables import StoredTable, TableStore
from pipeline.preprocess.sources.tables import SOURCE_SCHEMA
from pipeline.preprocess.sources.values import InlineValues
from shards.redaction import without_secrets


@dataclass(frozen=True)
class SourceChunk:
    """Some consecutive sources.

    Attributes:
        stored: Their rows of the source table.
        counts: The number of them in each split, by the index in `SPLITS`.
    """

    stored: StoredTable
    counts: tuple[int, ...]

    @staticmethod
    def counts_of(table: pa.Table) -> tuple[int, ...]:
        """Return how many rows of a source table are in each split."""
        codes = [chunk.indices.to_numpy() for chunk in table["split"].chunks]
        found = np.concatenate([np.zeros(0, np.int8), *codes])
        return tuple(np.bincount(found, minlength=len(SPLITS)).tolist())


@dataclass(frozen=True)
class SourceTable:
    """All sources, in the order in which shards take them.

    Attributes:
        chunks: The rows, one for each sample. `split` is its split. `uri` is `SPLIT/NAME`, which
            stays the same if the root moves. `target` is the number of its class. `row` is its row
            in a listing that holds values. `values_digest` is their digest, and `values_mtime` the
            time of their file if the digest does not cover all of them. `parts` are its files:
            `field`; `path` below the split's root, or an absolute path or URL; `offset` and
            `length` in a tar; `size` in bytes, -1 if unknown; and `mtime`.
        classes: The names of the classes. A target is an index into them.
        reaches: For each split its absolute folder or URL, with what gives access to it, and what
            else may be read.
        refused: The `uri`, `split` and `reason` of each source that can never be a sample.
        store: Runs work on the chunks.
        values: For each split whose rows hold values, where these lie.
    """

    chunks: tuple[SourceChunk, ...]
    classes: tuple[str, ...]
    reaches: dict[str, Reach]
    refused: pa.Table
    store: TableStore
    values: dict[str, InlineValues] = field(default_factory=dict)

    @property
    def table(self) -> pa.Table:
        """All rows at once. Its size grows with the sources."""
        tables = [chunk.stored.load() for chunk in self.chunks]
        return pa.concat_tables(tables) if tables else SOURCE_SCHEMA.empty_table()

    @property
    def num_rows(self) -> int:
        """The number of sources."""
        return sum(chunk.stored.num_rows for chunk in self.chunks)

    def with_table(self, table: pa.Table) -> "SourceTable":
        """Return the same with other rows."""
        return self.with_chunks([SourceChunk(self.store.put(table), SourceChunk.counts_of(table))])

    def with_chunks(self, chunks: Sequence[SourceChunk]) -> "SourceTable":
        """Return the same with other rows."""
        return replace(self, chunks=tuple(each for each in chunks if each.stored.num_rows))

    @property
    def roots(self) -> dict[str, str]:
        """The absolute folder or URL of each split, without secrets."""
        return {split: without_secrets(reach.root) for split, reach in self.reaches.items()}

    @property
    def value_addresses(self) -> dict[str, str]:
        """The addresses of the listings whose rows hold values, by the same without secrets."""
        return {values.path: absolute(values.table_file.source) for values in self.values.values()}

    @cached_property
    def content_digest(self) -> str:
        """A digest of all sources and their sizes, the same for every copy of them."""
        return self._digest(("values_digest",), ("offset", "size"))

    @cached_property
    def state_digest(self) -> str:
        """A digest like `content_digest` that also changes when a file is written again."""
        return self._digest(("values_digest", "values_mtime"), ("offset", "size", "mtime"))

    def _digest(self, of_values: tuple[str, ...], of_parts: tuple[str, ...]) -> str:
        hashed = hashlib.sha256()
        for name in ("split", "uri", "target", *of_values):
            hash_column(hashed, name, self.num_rows, self._column(name))
        counts = (pc.list_value_length(lists) for lists in self._column("parts"))
        num_parts = 0

        def counted() -> Iterator[pa.Array]:
            nonlocal num_parts
            for piece in counts:
                num_parts += pc.sum(piece).as_py() or 0
                yield piece

        hash_column(hashed, "count", self.num_rows, counted())
        for name in ("field", "path", *of_parts):
            fields = (pc.struct_field(lists.flatten(), name) for lists in self._column("parts"))
            hash_column(hashed, name, num_parts, fields)
        for name in self.refused.column_names:
            hash_column(hashed, name, self.refused.num_rows, self.refused[name].chunks)
        classes = pa.array([_encoded(name) for name in self.classes], pa.binary())
        hash_column(hashed, "classes", len(classes), [classes])
        return hashed.hexdigest()

    def _column(self, name: str) -> Iterator[pa.Array]:
        for chunk in self.chunks:
            yield from chunk.stored.load([name])[name].chunks

    def counts(self) -> dict[str, int]:
        """Return the number of samples of each split."""
        totals = [sum(of_split) for of_split in zip(*(c.counts for c in self.chunks), strict=True)]
        return {split: n for split, n in zip(SPLITS, totals, strict=False) if n}

    def of_split(self, split: str) -> pa.Table:
        """Return the rows of one split."""
        return pa.concat_tables([*self.pieces_of(split), SOURCE_SCHEMA.empty_table()])

    def pieces_of(self, split: str) -> Iterator[pa.Table]:
        """Yield the rows of one split in pieces, in their order."""
        code = SPLITS.index(split)
        for chunk in self.chunks:
            if chunk.counts[code]:
                table = chunk.stored.load()
                yield table.slice(sum(chunk.counts[:code]), chunk.counts[code])


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
