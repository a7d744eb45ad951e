"""Holds samples out for validation, by the hashes of their names, partition by partition."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.data import SPLITS
from pipeline.errors import UserError
from pipeline.preprocess.sources.classes import label_numbers
from pipeline.preprocess.sources.partitions import loaded, rows_of_partition
from pipeline.preprocess.sources.sample_groups import groups_of, hold_out_groups, sum_groups
from pipeline.preprocess.sources.split import TRAIN, VALIDATION, known_splits, ranks
from pipeline.preprocess.sources.stored_tables import StoredTable, TableStore
from pipeline.preprocess.sources.tables import one_chunk

_CELLS = 1 << 20
_MOST_BITS = 16
KNOWN_SCHEMA = pa.schema([("uri", pa.binary()), ("split", pa.string())])


@dataclass(frozen=True)
class Partition:
    """Samples whose names have the same hash, and the earlier samples of these names.

    Attributes:
        samples: The samples, of `FOUND_SCHEMA`.
        known: The columns `uri` and `split` of samples that were listed earlier.
    """

    samples: StoredTable
    known: list[StoredTable]


@dataclass(frozen=True)
class Labels:
    """Finds the class of a sample.

    Attributes:
        kind: The kind of the target.
        classes: The names of the classes.
    """

    kind: str
    classes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that each keep a share; none if all samples count as one class."""
        return self.classes if self.kind == "class" else ()

    def numbers(self, samples: pa.Table) -> np.ndarray:
        """Return the class number of each sample, or -1, int64 `[samples]`."""
        return label_numbers(self.kind, samples, self.classes)

    def of_shares(self, samples: pa.Table) -> np.ndarray:
        """Return the same, but 0 without a class."""
        return np.maximum(self.numbers(samples), 0)


@dataclass(frozen=True)
class HeldOut:
    """Says which samples of the training source are held out.

    Attributes:
        labels: Finds the class of a sample.
        seed: The seed of the hash.
        most: The largest rank of a new sample in validation, by class, uint64.
        any: Whether new samples are held out at all, by class, bool.
        groups: The `group` and `split` of all groups, or None without groups.
    """

    labels: Labels
    seed: int
    most: np.ndarray
    any: np.ndarray
    groups: StoredTable | None = None

    def splits(self, samples: pa.Table, known: pa.Table) -> np.ndarray:
        """Return the split of each training sample.

        Args:
            samples: The samples of a partition that are not in another split already.
            known: The earlier samples of the same names.

        Returns:
            The index in `SPLITS` of each sample, int8 `[samples]`.
        """
        if self.groups is not None:
            groups = self.groups.load()
            rows = pa.compute.index_in(
                one_chunk(samples["group"]), value_set=one_chunk(groups["group"])
            )
            return one_chunk(groups["split"]).take(rows).to_numpy().astype(np.int8)
        splits = known_splits(samples, known)
        new = np.flatnonzero(splits < 0)
        targets = self.labels.of_shares(samples)[new]
        rank = ranks(samples["name"], SPLITS[TRAIN], self.seed)[new]
        held = self.any[targets] & (rank <= self.most[targets])
        splits[new] = np.where(held, VALIDATION, TRAIN)
        return splits


def training_samples(samples: pa.Table) -> pa.Table:
    """Return the samples that are in the first split."""
    return samples.filter(pa.compute.equal(samples["split"], 0))


def hold_out(
    store: TableStore,
    partitions: Sequence[Partition],
    share: float,
    seed: int,
    labels: Labels,
) -> HeldOut:
    """Hold out `share` of each class for validation, and at least one of its samples.

    The choice is by hash, so that it stays the same: of each class, the new samples of the smallest
    ranks fill what is missing from the share. The ranks are first counted in cells, and then only
    those in the cell of the border are compared.

    Args:
        store: Runs the work.
        partitions: The samples, and the earlier ones, which stay in their split and count.
        share: The share of each class.
        seed: The seed of the hash.
        labels: Finds the class of a sample.

    Raises:
        UserError: A class has only one sample.
    """
    rows = sum(each.samples.num_rows for each in partitions)
    num_classes = max(1, len(labels.names))
    few = rows <= rows_of_partition(rows)
    bits = 0 if few else min(_MOST_BITS, max(0, (_CELLS // num_classes).bit_length() - 1))
    counts = np.zeros(num_classes, np.int64)
    held = np.zeros(num_classes, np.int64)
    cells = np.zeros((num_classes, 1 << bits), np.int64)
    calls = ((each.samples, each.known, labels, seed, bits) for each in partitions)
    for _, (more, of_held, of_cells) in store.run(_count, calls):
        counts += more
        held += of_held
        cells += of_cells
    if (counts == 1).any():
        names = labels.names
        what = f"class {names[int(np.argmax(counts == 1))]!r} has" if names else "there is"
        raise UserError(
            f"data.validation={share:g}: {what} only one file, so none would be left to train on; "
            "add files, or give validation a folder of its own"
        )
    wanted = np.minimum(np.maximum(1, np.rint(share * counts)), np.maximum(counts - 1, 0))
    missing = np.maximum(wanted.astype(np.int64) - held, 0)
    missing = np.minimum(missing, cells.sum(1))
    ends = cells.cumsum(1)
    border = (ends < missing[:, None]).sum(1)  # the cell with the last sample that is held out
    before = np.where(border > 0, ends[np.arange(num_classes), border - 1], 0)
    asked = missing > 0
    calls_again = (
        (each.samples, each.known, labels, seed, bits, np.where(asked, border, -1))
        for each in partitions
    )
    found = [pair for _, pair in store.run(_at_border, calls_again)]
    targets, candidates = (np.concatenate(each) for each in zip(*found, strict=True))
    order = np.lexsort((candidates, targets))
    firsts = np.searchsorted(targets[order], np.arange(num_classes))
    most = np.zeros(num_classes, np.uint64)
    last = (firsts + missing - before - 1)[asked]
    most[asked] = candidates[order[last]]
    return HeldOut(labels, seed, most, asked)


def hold_out_by_group(
    store: TableStore,
    partitions: Sequence[Partition],
    share: float,
    seed: int,
    labels: Labels,
) -> HeldOut:
    """Hold out whole groups; see `hold_out_groups`. The groups, not the samples, are held here."""
    calls = ((each.samples, each.known, labels) for each in partitions)
    counted = [table.load() for tables, _ in store.run(_count_groups, calls) for table in tables]
    num_classes = max(1, len(labels.names))
    groups = hold_out_groups(sum_groups(pa.concat_tables(counted)), share, seed, num_classes)
    none = np.zeros(num_classes)
    return HeldOut(
        labels, seed, none.astype(np.uint64), none.astype(bool), groups=store.put(groups)
    )


def _count(
    samples: StoredTable, known: list[StoredTable], labels: Labels, seed: int, bits: int
) -> Generator[pa.Table, None, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Count a partition's training samples by class: all, those held out, and new ones by rank."""
    yield from ()
    table = training_samples(samples.load())
    size = max(1, len(labels.names))
    targets = labels.of_shares(table)
    splits = known_splits(table, loaded(known, KNOWN_SCHEMA))
    new = splits < 0
    cells = targets[new] << bits
    if bits:
        cells |= _cells(ranks(table["name"], SPLITS[TRAIN], seed)[new], bits)
    return (
        np.bincount(targets, minlength=size),
        np.bincount(targets[splits == VALIDATION], minlength=size),
        np.bincount(cells, minlength=size << bits).reshape(size, -1),
    )


def _at_border(
    samples: StoredTable,
    known: list[StoredTable],
    labels: Labels,
    seed: int,
    bits: int,
    border: np.ndarray,
) -> Generator[pa.Table, None, tuple[np.ndarray, np.ndarray]]:
    """Return the class and the rank of the new samples in the cell of their class's border."""
    yield from ()
    table = training_samples(samples.load())
    new = known_splits(table, loaded(known, KNOWN_SCHEMA)) < 0
    targets = labels.of_shares(table)[new]
    found = ranks(table["name"], SPLITS[TRAIN], seed)[new]
    there = border[targets] == (_cells(found, bits) if bits else 0)
    return targets[there], found[there]


def _cells(found: np.ndarray, bits: int) -> np.ndarray:
    return (found >> np.uint64(64 - bits)).astype(np.int64)


def _count_groups(
    samples: StoredTable, known: list[StoredTable], labels: Labels
) -> Iterator[pa.Table]:
    table = training_samples(samples.load())
    splits = known_splits(table, loaded(known, KNOWN_SCHEMA))
    yield groups_of(table, splits, labels.of_shares(table))
