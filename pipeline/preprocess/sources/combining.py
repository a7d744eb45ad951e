"""Puts samples together from what was found in a source: members by key, rows by name."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import SPLITS, DataConfig
from pipeline.errors import UserError
from pipeline.preprocess.sources.grouping import MEMBER_SCHEMA, SampleRequirement, group
from pipeline.preprocess.sources.listing_files import unique
from pipeline.preprocess.sources.partitions import by_hash, released
from pipeline.preprocess.sources.sample_groups import groups_by_pattern
from pipeline.preprocess.sources.scan import SourceScan
from pipeline.preprocess.sources.stored_tables import StoredTable, TableStore
from pipeline.preprocess.sources.tables import (
    FOUND_SCHEMA,
    REFUSED_SCHEMA,
    concat,
    first_refused,
    one_chunk,
    split_column,
)


@dataclass(frozen=True)
class Combined:
    """The samples of one source.

    Attributes:
        partitions: The samples, of `FOUND_SCHEMA`, by the hash of their names; None for an empty
            partition.
        refused: The refused sources, of `REFUSED_SCHEMA`, with `SPLIT/NAME` as URIs.
        labels: The labels in each split, by the index in `SPLITS`.
        counts: The number of samples in each split, int64 `[splits]`.
        last_row: The largest row of the samples in each split, or -1, int64 `[splits]`.
    """

    partitions: list[StoredTable | None]
    refused: pa.Table
    labels: list[set[bytes]]
    counts: np.ndarray
    last_row: np.ndarray


@dataclass(frozen=True)
class _Rule:
    wanted: SampleRequirement | None
    is_listing: bool
    pattern: str | None  # captures the group of a sample
    split: str  # of the source
    is_own: bool  # whether all samples belong to it
    label_key: str | None  # in the error for a sample without a class


@dataclass(frozen=True)
class _Facts:
    repeated: pa.Table  # refused because of other members or rows
    classless: pa.Table
    num_found: int
    labels: list[set[bytes]]
    counts: np.ndarray
    last_row: np.ndarray


def combine(
    store: TableStore, data: DataConfig, scan: SourceScan, split: str, num_partitions: int
) -> Combined:
    """Put the samples of a source together.

    Args:
        store: Runs the work.
        data: The section `data` of the configuration.
        scan: What was found.
        split: The split of the source. All samples belong to it, unless it is `train`, where a
            listing may name other splits.
        num_partitions: The number of partitions.

    Raises:
        UserError: The pattern of `data.group` does not fit, or no sample is left.
    """
    rule = _Rule(
        scan.wanted,
        scan.is_listing,
        None if scan.is_listing else data.group,
        split,
        split != SPLITS[0],
        data.target.key if data.target.kind == "class" else None,
    )
    dealt = by_hash(store, scan.tables, "key" if scan.wanted else "name", num_partitions)
    tables: list[StoredTable | None] = []
    facts: list[_Facts] = []
    for made, found in store.run(_combine, ((pieces, rule) for pieces in released(dealt))):
        tables.append(made[0] if made[0].num_rows else None)
        facts.append(found)
    raw = concat([scan.refused, *(each.repeated for each in facts)], REFUSED_SCHEMA)
    if scan.nothing and not any(each.num_found for each in facts):
        raise UserError(f"{scan.nothing}{first_refused(raw)}")
    if rule.is_own:
        owned = pa.repeat(pa.scalar(split, pa.string()), raw.num_rows)
        raw = raw.set_column(raw.schema.get_field_index("split"), "split", owned)
    classless = [each.classless for each in facts]
    return Combined(
        tables,
        _with_uris(concat([raw, *classless], REFUSED_SCHEMA), split),
        [set().union(*names) for names in zip(*(each.labels for each in facts), strict=True)],
        np.sum([each.counts for each in facts], axis=0),
        np.max([each.last_row for each in facts], axis=0),
    )


def _combine(pieces: list[StoredTable], rule: _Rule) -> Generator[pa.Table, None, _Facts]:
    """Put the samples of a partition together, as a step."""
    schema = FOUND_SCHEMA if rule.wanted is None else MEMBER_SCHEMA
    samples = concat([piece.load() for piece in pieces], schema)
    repeated = REFUSED_SCHEMA.empty_table()
    if rule.wanted is not None:
        samples, repeated = group(samples, rule.wanted)
    elif rule.is_listing:
        samples, repeated = unique(samples)
    num_found = samples.num_rows
    if rule.pattern is not None:
        groups = groups_by_pattern(samples["name"], rule.pattern)
        samples = samples.set_column(samples.schema.get_field_index("group"), "group", groups)
    if rule.is_own:
        codes = np.full(samples.num_rows, SPLITS.index(rule.split), np.int8)
        index = samples.schema.get_field_index("split")
        samples = samples.set_column(index, "split", pa.array(codes))
    classless = REFUSED_SCHEMA.empty_table()
    if rule.label_key is not None and samples["label"].null_count:
        classless = _classless(samples.filter(pc.is_null(samples["label"])), rule.label_key)
        samples = samples.filter(pc.is_valid(samples["label"]))
    yield samples
    splits, rows = samples["split"].to_numpy(), samples["row"].fill_null(-1).to_numpy()
    labels = [
        set(pc.unique(samples["label"].filter(pa.array(splits == code))).drop_null().to_pylist())
        if rule.label_key is not None
        else set()
        for code in range(len(SPLITS))
    ]
    last = [rows[splits == code].max(initial=-1) for code in range(len(SPLITS))]
    counts = np.bincount(splits, minlength=len(SPLITS))
    return _Facts(repeated, classless, num_found, labels, counts, np.array(last))


def _classless(samples: pa.Table, key: str) -> pa.Table:
    reason = f"it has no class: neither .cls nor {key!r} in .json"
    return pa.table(
        {
            "uri": samples["name"],
            "split": split_column(samples["split"].to_numpy()).cast(pa.string()),
            "reason": pa.repeat(pa.scalar(reason), samples.num_rows),
        },
        schema=REFUSED_SCHEMA,
    )


def _with_uris(refused: pa.Table, split: str) -> pa.Table:
    """Put the split before each name. A row without a split belongs to that of its source."""
    splits = pc.fill_null(one_chunk(refused["split"]), split)
    uris = pc.binary_join_element_wise(splits.cast(pa.binary()), one_chunk(refused["uri"]), b"/")
    return pa.table(
        {"uri": uris, "split": splits, "reason": refused["reason"]}, schema=REFUSED_SCHEMA
    )
