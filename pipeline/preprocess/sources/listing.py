"""Lists all sources of a configuration, with their splits, targets and order."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import SPLITS, DataConfig, absolute
from pipeline.errors import UserError
from pipeline.media.errors import MediaError
from pipeline.preprocess.sources.addresses import filesystem_of
from pipeline.preprocess.sources.classes import class_names, label_numbers
from pipeline.preprocess.sources.folders import find_in_folder
from pipeline.preprocess.sources.listing_files import find_in_listing
from pipeline.preprocess.sources.parts import read_errors, redacted_line
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.rows import SUFFIXES, suffix_of
from pipeline.preprocess.sources.sample_groups import (
    groups_by_pattern,
    hold_out_groups,
    refuse_shared_groups,
)
from pipeline.preprocess.sources.split import VALIDATION, hold_out, order_of
from pipeline.preprocess.sources.tables import (
    FOUND_SCHEMA,
    REFUSED_SCHEMA,
    SOURCE_SCHEMA,
    SourceScan,
    concat,
    first_refused,
    one_chunk,
    split_column,
    table_digest,
    with_split,
)
from pipeline.preprocess.sources.tars import find_in_tars, is_tars
from pipeline.preprocess.sources.values import InlineValues
from pipeline.preprocess.sources.walk import is_local
from shards.redaction import without_secrets


@dataclass(frozen=True)
class SourceTable:
    """All sources, in the order in which shards take them.

    Attributes:
        table: One row for each sample. `split` is its split. `uri` is `SPLIT/NAME`, which stays the
            same if the root moves. `target` is the number of its class. `row` is its row in a
            listing that holds values. `values_digest` is their digest, and `values_mtime` the time
            of their file if the digest does not cover all of them. `parts` are its files: `field`;
            `path` below the split's root, or an absolute path or URL; `offset` and `length` in a
            tar; `size` in bytes, -1 if unknown; and `mtime`.
        classes: The names of the classes. A target is an index into them.
        reaches: For each split its absolute folder or URL, with what gives access to it, and what
            else may be read.
        refused: The `uri`, `split` and `reason` of each source that can never be a sample.
        values: For each split whose rows hold values, where these lie.
    """

    table: pa.Table
    classes: tuple[str, ...]
    reaches: dict[str, Reach]
    refused: pa.Table
    values: dict[str, InlineValues] = field(default_factory=dict)

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
        parts = one_chunk(self.table["parts"])
        flat = parts.flatten()
        names = ("field", "path", *of_parts)
        columns = {name: flat.field(flat.type.get_field_index(name)) for name in names}
        columns["count"] = pc.list_value_length(parts)
        tables = [
            self.table.select(["split", "uri", "target", *of_values]),
            pa.table({"count": columns.pop("count")}),
            pa.table(columns),
            self.refused,
            pa.table({"classes": pa.array([_encoded(name) for name in self.classes], pa.binary())}),
        ]
        return table_digest(tables)

    def counts(self) -> dict[str, int]:
        """Return the number of samples of each split."""
        pairs = pc.value_counts(self.table["split"]).to_pylist()
        found = {pair["values"]: pair["counts"] for pair in pairs}
        return {split: found[split] for split in SPLITS if split in found}

    def of_split(self, split: str) -> pa.Table:
        """Return the rows of one split."""
        return self.table.filter(pc.equal(self.table["split"], split))


class Sources(Protocol):
    """What names the sources: a `Config`, or another object with these two attributes."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def seed(self) -> int: ...


def list_sources(
    config: Sources, known: pa.Table | None = None, known_classes: Sequence[str] = ()
) -> SourceTable:
    """List the samples of every split.

    Args:
        config: The configuration, which says where the sources lie and what they are.
        known: The columns `uri` (binary) and `split` of samples that were listed earlier. If
            `data.validation` is a share, they stay in their split. The others are distributed so
            that each class keeps the share.
        known_classes: The classes of the existing set. They keep their numbers, and new ones
            follow.

    Returns:
        All sources.

    Raises:
        UserError: A source is missing, empty, or not what the configuration says; there is only one
            class; a split has a class that training lacks; or no sample is left to train on.
    """
    data = config.data
    found = {"train": _find(data, data.train, "data.train")}
    for split, source in (("validation", data.validation), ("test", data.test)):
        if isinstance(source, str):
            found[split] = _in_split(_find(data, source, f"data.{split}"), split)
    samples, refused = _without_classless(data, found)
    splits = samples["split"].to_numpy().astype(np.int8)
    if not (splits == 0).any():
        raise UserError(f"data.train={data.train}: no sample can be used{first_refused(refused)}")
    classes = class_names(data, found, samples, splits, known_classes)
    targets = label_numbers(data, samples, splits, classes)
    if isinstance(data.validation, float):
        _split_train(config, samples, splits, known, classes, targets)
    if data.group is not None:
        refuse_shared_groups(samples["group"], splits, data.group)
    if not (splits == 0).any():
        raise UserError(f"data.train={data.train}: no sample is left to train on")
    rows = samples["row"].fill_null(-1).to_numpy()
    order = order_of(splits, samples, rows, config.seed)
    listed = [split for code, split in enumerate(SPLITS) if (splits == code).any()]
    owner = {split: split if split in found else "train" for split in listed}
    return SourceTable(
        table=_table(samples, splits, targets if data.target.kind == "class" else None, order),
        classes=classes,
        reaches={split: _reach(data, found[owner[split]]) for split in listed},
        refused=refused,
        values={s: v for s in listed if (v := found[owner[s]].values) is not None},
    )


def _split_train(
    config: Sources,
    samples: pa.Table,
    splits: np.ndarray,
    known: pa.Table | None,
    classes: tuple[str, ...],
    targets: np.ndarray,
) -> None:
    """Hold the share `data.validation` of the training samples out, in `splits` itself."""
    data = config.data
    assert isinstance(data.validation, float)
    train = np.flatnonzero(splits == 0)
    of_train = samples.take(pa.array(train))
    by_class = data.target.kind == "class"
    ours = targets[train] if by_class else np.zeros(len(train), np.int64)
    names = classes if by_class else ()
    if data.group is None:
        splits[train] = hold_out(of_train, data.validation, config.seed, known, names, ours)
    else:
        num_classes = max(1, len(names))
        splits[train] = hold_out_groups(
            of_train, data.validation, config.seed, known, num_classes, ours
        )


def _reach(data: DataConfig, found: SourceScan) -> Reach:
    root = absolute(found.root)
    return Reach(root, data.allow, data.max_file_bytes, confined=found.confined)


def _find(data: DataConfig, source: str, setting: str) -> SourceScan:
    try:
        filesystem, _ = filesystem_of(source)
    except (ImportError, ValueError) as error:  # the text says which package its protocol needs
        raise UserError(f"{setting}={source}: {' '.join(str(error).split())}") from None
    local = is_local(filesystem)
    try:
        return _find_by_layout(data, source, setting)
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, (MediaError, *read_errors(filesystem))):
            raise
        reason = " ".join(str(error).split()) if local else redacted_line(error)
        raise UserError(f"{setting}={source}: cannot be read: {reason}") from None


def _find_by_layout(data: DataConfig, source: str, setting: str) -> SourceScan:
    layout = data.layout
    if layout == "auto":
        layout = "folders"
        if suffix_of(source) is not None:
            layout = "listing"
        elif is_tars(source):
            layout = "tars"
    if layout == "tars":
        return _grouped(data, find_in_tars(data, source, setting))
    if layout == "folders":
        return _grouped(data, find_in_folder(data, source, setting))
    if suffix_of(source) is None:
        raise UserError(f"{setting}={source}: a listing's name ends in {', '.join(SUFFIXES)}")
    return find_in_listing(data, source, setting)


def _grouped(data: DataConfig, found: SourceScan) -> SourceScan:
    """Give each sample of a folder or of tars its group, by the pattern on its path."""
    if data.group is None:
        return found
    groups = groups_by_pattern(found.samples["name"], data.group)
    index = found.samples.schema.get_field_index("group")
    return replace(found, samples=found.samples.set_column(index, "group", groups))


def _in_split(found: SourceScan, split: str) -> SourceScan:
    """Put all samples into one split."""
    index = found.samples.schema.get_field_index("split")
    codes = pa.array(np.full(found.samples.num_rows, SPLITS.index(split), np.int8))
    names = {split: set().union(*found.label_names.values())}
    refused_index = found.refused.schema.get_field_index("split")
    of_refused = pa.repeat(pa.scalar(split, pa.string()), found.refused.num_rows)
    return replace(
        found,
        samples=found.samples.set_column(index, "split", codes),
        refused=found.refused.set_column(refused_index, "split", of_refused),
        label_names=names,
    )


def _without_classless(data: DataConfig, found: dict[str, SourceScan]) -> tuple[pa.Table, pa.Table]:
    """Return all samples and all refusals; refuse samples that lack a class they need."""
    samples, refused = [], []
    for split, part in found.items():
        kept = part.samples
        refusals = [part.refused]
        if data.target.kind == "class" and kept["label"].null_count:
            without = kept.filter(pc.is_null(kept["label"]))
            reason = f"it has no class: neither .cls nor {data.target.key!r} in .json"
            refusals.append(
                pa.table(
                    {
                        "uri": without["name"],
                        "split": split_column(without["split"].to_numpy()).cast(pa.string()),
                        "reason": pa.array([reason] * without.num_rows),
                    },
                    schema=REFUSED_SCHEMA,
                )
            )
            kept = kept.filter(pc.is_valid(kept["label"]))
        samples.append(kept)
        table = concat(refusals, REFUSED_SCHEMA)
        # A row without a split belongs to the split whose source it lies in.
        splits = pc.fill_null(one_chunk(table["split"]), split)
        refused.append(
            pa.table(
                {
                    "uri": pc.binary_join_element_wise(
                        splits.cast(pa.binary()), one_chunk(table["uri"]), b"/"
                    ),
                    "split": splits,
                    "reason": table["reason"],
                },
                schema=REFUSED_SCHEMA,
            )
        )
    everything = concat(refused, REFUSED_SCHEMA).sort_by(
        [("uri", "ascending"), ("reason", "ascending")]
    )
    return concat(samples, FOUND_SCHEMA), everything


def _table(
    samples: pa.Table, splits: np.ndarray, targets: np.ndarray | None, order: np.ndarray
) -> pa.Table:
    """Return the samples in their order, with `SPLIT/NAME` as URIs."""
    rows = pa.array(order)
    ordered = samples.select(["name", "row", "values_digest", "values_mtime", "parts"]).take(rows)
    codes = splits[order]
    names = []
    for code in VALIDATION - 1, VALIDATION, VALIDATION + 1:
        first, last = np.searchsorted(codes, [code, code + 1])
        if first < last:
            names.append(
                with_split(one_chunk(ordered["name"].slice(first, last - first)), SPLITS[code])
            )
    return pa.table(
        {
            "split": split_column(codes),
            "uri": pa.chunked_array(names, pa.binary()),
            "target": pa.nulls(len(order), pa.int64()) if targets is None else targets[order],
            "row": ordered["row"],
            "values_digest": ordered["values_digest"],
            "values_mtime": ordered["values_mtime"],
            "parts": ordered["parts"],
        },
        schema=SOURCE_SCHEMA,
    )


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
