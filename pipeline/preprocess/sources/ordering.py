"""Puts samples into the order in which shards take them, partition by partition.

Samples are dealt out to buckets by their split and the range of their key. A bucket is then sorted
alone.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import SPLITS
from pipeline.preprocess.sources.holding_out import KNOWN_SCHEMA, HeldOut, Labels, Partition
from pipeline.preprocess.sources.partitions import (
    dealt,
    loaded,
    released,
    transposed,
)
from pipeline.preprocess.sources.sample_groups import groups_of, sum_groups
from pipeline.preprocess.sources.source_table import SourceChunk
from pipeline.preprocess.sources.split import order_of
from pipeline.preprocess.sources.stored_tables import StoredTable, TableStore
from pipeline.preprocess.sources.tables import SOURCE_SCHEMA, split_column

_KEY, _CODE = "key", "code"
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Layout:
    """The buckets.

    Attributes:
        first: The number of each split's first bucket, and the number of all buckets.
        width: How many rows of a listing a bucket has, or 0 if the samples of a split are ordered
            by hash.
    """

    first: tuple[int, ...]
    width: tuple[int, ...]

    @classmethod
    def of(
        cls,
        num_rows: Sequence[int],
        last_row: Sequence[int],
        share: float,
        num_partitions: int,
    ) -> "Layout":
        """Choose the buckets.

        Args:
            num_rows: The number of samples of each split, before any are held out.
            last_row: The largest row of each split's samples in a listing, or -1 for other samples.
            share: The share of the training samples that is held out.
            num_partitions: The number of partitions. A bucket has about as many rows as one.
        """
        rows = -(-sum(num_rows) // num_partitions)
        if num_partitions == 1:
            return cls((0, 0, 0, 1), (0, 0, 0))
        expected = list(num_rows)
        last = list(last_row)
        if share:
            expected[1] += int(share * expected[0]) + 1
            last[1] = max(last[1], last[0])
        first, width = [0], []
        for size, end in zip(expected, last, strict=True):
            of_rows = end >= 0
            width.append(rows if of_rows else 0)
            first.append(first[-1] + (end // rows + 1 if of_rows else max(1, -(-size // rows))))
        return cls(tuple(first), tuple(width))

    @property
    def num_buckets(self) -> int:
        """The number of buckets."""
        return self.first[-1]

    def buckets(self, keys: np.ndarray, splits: np.ndarray) -> np.ndarray:
        """Return the bucket of each sample, by its key (uint64) and its split, `[samples]`."""
        found = np.zeros(len(keys), np.int64)
        if self.num_buckets == 1:
            return found
        for code, width in enumerate(self.width):
            where = splits == code
            count = np.uint64(self.first[code + 1] - self.first[code])
            of_split = keys[where]
            numbers = (
                of_split // np.uint64(width) if width else (of_split >> _HALF) * count >> _HALF
            )
            found[where] = self.first[code] + numbers.astype(np.int64)
        return found


def in_order(
    store: TableStore,
    partitions: Sequence[Partition],
    labels: Labels,
    layout: Layout,
    seed: int,
    held_out: HeldOut | None,
    *,
    grouped: bool,
) -> tuple[list[SourceChunk], pa.Table | None]:
    """Return the samples in their order, and their groups, counted by split.

    Args:
        store: Runs the work.
        partitions: The samples.
        labels: Finds the class of a sample.
        layout: The buckets.
        seed: The seed of the hash.
        held_out: Says which training samples are held out, or None if none are.
        grouped: Whether samples have groups.
    """
    calls = (
        (each.samples, each.known, labels, layout, seed, held_out, grouped) for each in partitions
    )
    groups: list[pa.Table] = []

    def noted() -> Iterator[tuple[list[StoredTable], Any]]:
        for pieces, counted in store.run(_deal, calls):
            groups.append(counted)
            yield pieces, None

    buckets = transposed(noted(), layout.num_buckets)
    made = store.run(_sort, ((pieces,) for pieces in released(buckets) if pieces))
    chunks = [SourceChunk(tables[0], counts) for tables, counts in made]
    return chunks, sum_groups(pa.concat_tables(groups)) if grouped else None


def _deal(
    samples: StoredTable,
    known: list[StoredTable],
    labels: Labels,
    layout: Layout,
    seed: int,
    held_out: HeldOut | None,
    grouped: bool,
) -> Generator[pa.Table, None, pa.Table | None]:
    """Deal the samples of a partition out to the buckets, as a step. Return their groups."""
    table = samples.load()
    splits = table["split"].to_numpy().astype(np.int8)
    if held_out is not None:
        train = np.flatnonzero(splits == 0)
        earlier = loaded(known, KNOWN_SCHEMA)
        splits[train] = held_out.splits(table.take(pa.array(train)), earlier)
    targets = labels.numbers(table) if labels.kind == "class" else None
    keys = order_of(splits, table, seed)
    splits_column = pa.array(splits)
    rows = pa.table(
        {
            _KEY: keys,
            _CODE: splits_column,
            "uri": _uris(table["name"], splits),
            "target": pa.nulls(len(splits), pa.int64()) if targets is None else targets,
            **{name: table[name] for name in ("row", "values_digest", "values_mtime", "parts")},
        }
    )
    yield from dealt(rows, layout.buckets(keys, splits), layout.num_buckets)
    return groups_of(table, splits) if grouped else None


def _uris(names: pa.ChunkedArray, splits: np.ndarray) -> pa.ChunkedArray:
    """Return `SPLIT/NAME` for each sample."""
    prefixes = split_column(splits).cast(pa.string()).cast(pa.binary())
    return pc.binary_join_element_wise(pa.chunked_array([prefixes]), names, b"/")


def _sort(pieces: list[StoredTable]) -> Generator[pa.Table, None, tuple[int, ...]]:
    """Sort a bucket, as a step. Return how many of its samples are in each split."""
    table = pa.concat_tables([piece.load() for piece in pieces])
    splits = table[_CODE].to_numpy()
    order = np.lexsort((table[_KEY].to_numpy(), splits))
    ordered = table.drop_columns([_KEY, _CODE]).take(pa.array(order))
    columns = {name: ordered[name] for name in ordered.column_names}
    yield pa.table({"split": split_column(splits[order]), **columns}, schema=SOURCE_SCHEMA)
    return tuple(np.bincount(splits, minlength=len(SPLITS)).tolist())
