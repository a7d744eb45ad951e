"""Lists all sources of a configuration, with their splits, targets and order."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from pipeline.config.data import SPLITS, DataConfig, absolute
from pipeline.errors import UserError
from pipeline.media.errors import MediaError
from pipeline.preprocess.sources.addresses import filesystem_of
from pipeline.preprocess.sources.classes import class_names
from pipeline.preprocess.sources.combining import Combined, combine
from pipeline.preprocess.sources.folders import find_in_folder
from pipeline.preprocess.sources.holding_out import (
    Labels,
    Partition,
    hold_out,
    hold_out_by_group,
)
from pipeline.preprocess.sources.listing_files import find_in_listing
from pipeline.preprocess.sources.ordering import Layout, in_order
from pipeline.preprocess.sources.partitions import by_hash, count_partitions
from pipeline.preprocess.sources.parts import read_errors, redacted_line
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.rows import SUFFIXES, suffix_of
from pipeline.preprocess.sources.sample_groups import group_pattern, refuse_shared_groups
from pipeline.preprocess.sources.scan import SourceScan
from pipeline.preprocess.sources.source_table import SourceTable
from pipeline.preprocess.sources.stored_tables import StoredTable, TableStore
from pipeline.preprocess.sources.tables import REFUSED_SCHEMA, concat, first_refused
from pipeline.preprocess.sources.tars import find_in_tars, is_tars
from pipeline.preprocess.sources.walk import is_local


class Sources(Protocol):
    """What names the sources: a `Config`, or another object with these two attributes."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def seed(self) -> int: ...


def list_sources(
    config: Sources,
    known: Sequence[StoredTable] = (),
    known_classes: Sequence[str] = (),
    store: TableStore | None = None,
) -> SourceTable:
    """List the samples of every split.

    Args:
        config: The configuration, which says where the sources lie and what they are.
        known: The columns `uri` (binary) and `split` of samples that were listed earlier. If
            `data.validation` is a share, they stay in their split. The others are distributed so
            that each class keeps the share.
        known_classes: The classes of the existing set. They keep their numbers, and new ones
            follow.
        store: Holds the sources and runs the work; None for a store of this process alone.

    Returns:
        All sources.

    Raises:
        UserError: A source is missing, empty, or not what the configuration says; there is only one
            class; a split has a class that training lacks; or no sample is left to train on.
    """
    store = TableStore() if store is None else store
    data = config.data
    scans = {SPLITS[0]: _find(data, data.train, "data.train", store)}
    if data.group is not None and not scans[SPLITS[0]].is_listing:
        group_pattern(data.group)
    for split, source in (("validation", data.validation), ("test", data.test)):
        if isinstance(source, str):
            scans[split] = _find(data, source, f"data.{split}", store)
    num_partitions = count_partitions(table for scan in scans.values() for table in scan.tables)
    found = {
        split: combine(store, data, scan, split, num_partitions) for split, scan in scans.items()
    }
    refused = concat([each.refused for each in found.values()], REFUSED_SCHEMA).sort_by(
        [("uri", "ascending"), ("reason", "ascending")]
    )
    counts = np.sum([each.counts for each in found.values()], axis=0)
    if not counts[0]:
        raise UserError(f"data.train={data.train}: no sample can be used{first_refused(refused)}")
    of_classes = {
        split: {os.fsdecode(name) for each in found.values() for name in each.labels[code]}
        for code, split in enumerate(SPLITS)
    }
    classes = class_names(data, _with_labels_by_split(scans), of_classes, known_classes)
    labels = Labels(data.target.kind, classes)
    partitions = _partitions(store, found, known, num_partitions)
    share = data.validation if isinstance(data.validation, float) else 0.0
    held_out = None
    if share:
        choose = hold_out if data.group is None else hold_out_by_group
        held_out = choose(store, partitions, share, config.seed, labels)
    last_row = np.max([each.last_row for each in found.values()], axis=0)
    chunks, groups = in_order(
        store,
        partitions,
        labels,
        Layout.of(counts.tolist(), last_row.tolist(), share, num_partitions),
        config.seed,
        held_out,
        grouped=data.group is not None,
    )
    if groups is not None and data.group is not None:
        refuse_shared_groups(groups, data.group)
    found_in = np.sum([chunk.counts for chunk in chunks], axis=0)
    if not found_in[0]:
        raise UserError(f"data.train={data.train}: no sample is left to train on")
    listed = [split for code, split in enumerate(SPLITS) if found_in[code]]
    owner = {split: scans.get(split, scans[SPLITS[0]]) for split in listed}
    return SourceTable(
        chunks=tuple(chunks),
        classes=classes,
        reaches={split: _reach(data, owner[split]) for split in listed},
        refused=refused,
        store=store,
        values={s: v for s in listed if (v := owner[s].values) is not None},
    )


def _with_labels_by_split(scans: dict[str, SourceScan]) -> dict[str, SourceScan]:
    """Return the sources with their labels under their own split. Training rows may name others."""
    own = {
        split: replace(scan, label_names={split: set().union(*scan.label_names.values())})
        for split, scan in scans.items()
    }
    return {**own, SPLITS[0]: scans[SPLITS[0]]}


def _partitions(
    store: TableStore,
    found: dict[str, Combined],
    known: Sequence[StoredTable],
    num_partitions: int,
) -> list[Partition]:
    """Bring the samples of a partition together with the earlier samples of the same names."""
    earlier = by_hash(store, known, "uri", num_partitions)
    return [
        Partition(samples, earlier[number])
        for each in found.values()
        for number, samples in enumerate(each.partitions)
        if samples is not None
    ]


def _reach(data: DataConfig, found: SourceScan) -> Reach:
    root = absolute(found.root)
    return Reach(root, data.allow, data.max_file_bytes, confined=found.confined)


def _find(data: DataConfig, source: str, setting: str, store: TableStore) -> SourceScan:
    try:
        filesystem, _ = filesystem_of(source)
    except (ImportError, ValueError) as error:  # the text says which package its protocol needs
        raise UserError(f"{setting}={source}: {' '.join(str(error).split())}") from None
    local = is_local(filesystem)
    try:
        return _find_by_layout(data, source, setting, store)
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, (MediaError, *read_errors(filesystem))):
            raise
        reason = " ".join(str(error).split()) if local else redacted_line(error)
        raise UserError(f"{setting}={source}: cannot be read: {reason}") from None


def _find_by_layout(data: DataConfig, source: str, setting: str, store: TableStore) -> SourceScan:
    layout = data.layout
    if layout == "auto":
        layout = "folders"
        if suffix_of(source) is not None:
            layout = "listing"
        elif is_tars(source):
            layout = "tars"
    if layout == "tars":
        return find_in_tars(data, source, setting, store)
    if layout == "folders":
        return find_in_folder(data, source, setting, store)
    if suffix_of(source) is None:
        raise UserError(f"{setting}={source}: a listing's name ends in {', '.join(SUFFIXES)}")
    return find_in_listing(data, source, setting, store)
