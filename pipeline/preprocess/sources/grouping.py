"""Files or tar members of one name, brought together as samples; vectorised."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.preprocess.sources.fields import CLASS_LABEL, FIELD_CODES, OTHER, PART_FIELDS
from pipeline.preprocess.sources.tables import FOUND_SCHEMA, PARTS_TYPE, REFUSED_SCHEMA, one_chunk

MEMBER_SCHEMA = pa.schema(
    [
        ("key", pa.binary()),
        ("field", pa.int8()),
        ("label", pa.binary()),
        ("path", pa.binary()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("size", pa.int64()),
        ("mtime", pa.string()),
    ]
)


@dataclass(frozen=True)
class SampleRequirement:
    """What a sample must have.

    Attributes:
        modalities: that it may have; at least one.
        missing: those of them that it may lack.
        target: the field of the target's file, or None.
    """

    modalities: tuple[str, ...]
    missing: tuple[str, ...] = ()
    target: str | None = None

    def lacks(self, present: np.ndarray) -> np.ndarray:
        """Bits of the fields that are missing, for bits of those present: int64 `[samples]`."""
        required = bits_of(set(self.modalities) - set(self.missing))
        lacks = required & ~present
        if "video" in self.modalities:  # a film brings its sound
            lacks[present & bits_of({"video"}) != 0] &= ~bits_of({"audio"})
        if self.target:
            lacks |= bits_of({self.target}) & ~present
        lacks[present & bits_of(set(self.modalities)) == 0] |= _NOTHING
        return lacks

    def reason(self, lacks: int) -> str:
        """What a sample lacks, in words."""
        if lacks & _NOTHING:
            return f"none of its files is {' or '.join(self.modalities)}"
        return f"it has no {' and no '.join(_names(lacks))}"


_NOTHING = 1 << 60


def bits_of(fields: set[str]) -> int:
    """Fields as bits, by their codes."""
    return sum(1 << FIELD_CODES[field] for field in fields)


def _names(bits: int) -> list[str]:
    return [field for field in PART_FIELDS if bits & bits_of({field})]


def group(members: pa.Table, wanted: SampleRequirement) -> tuple[pa.Table, pa.Table]:
    """Samples of the members that share a key.

    Args:
        members: of `MEMBER_SCHEMA`; `field` holds codes of `.fields`.
        wanted: what makes a sample whole.

    Returns:
        Samples of `FOUND_SCHEMA` (all in the first split), and those refused, of `REFUSED_SCHEMA`.
    """
    if not members.num_rows:
        return FOUND_SCHEMA.empty_table(), REFUSED_SCHEMA.empty_table()
    encoded = one_chunk(members["key"]).dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    fields = members["field"].to_numpy().astype(np.int64)
    order = np.lexsort((fields, codes))
    codes, fields = codes[order], fields[order]
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    present = np.bitwise_or.reduceat(1 << fields, starts)
    again = np.r_[False, (codes[1:] == codes[:-1]) & (fields[1:] == fields[:-1])]
    twice = np.bitwise_or.reduceat(np.where(again & (fields != OTHER), 1 << fields, 0), starts)
    names = encoded.dictionary.take(pa.array(codes[starts]))
    lacks = wanted.lacks(present)
    bad = (lacks != 0) | (twice != 0)

    kept = fields < OTHER
    offsets = np.r_[0, np.cumsum(np.add.reduceat(kept.astype(np.int64), starts))]
    flat = members.take(pa.array(order[kept]))
    samples = pa.table(
        {
            "split": np.zeros(len(starts), np.int8),
            "name": names,
            "label": _labels(members, order, fields, starts),
            "row": pa.nulls(len(starts), pa.int64()),
            "values_digest": pa.nulls(len(starts), pa.binary()),
            "values_mtime": pa.nulls(len(starts), pa.string()),
            "parts": parts_of(offsets, fields[kept], flat),
        },
        schema=FOUND_SCHEMA,
    )
    refused = _refused(names, lacks, twice, bad, wanted)
    return samples.filter(pa.array(~bad)) if bad.any() else samples, refused


def parts_of(offsets: np.ndarray, fields: np.ndarray, flat: pa.Table) -> pa.Array:
    """The column `parts`: rows of `flat` (path, offset, …, mtime), cut at `offsets`."""
    field_names = pa.DictionaryArray.from_arrays(
        pa.array(fields.astype(np.int8)), pa.array(PART_FIELDS)
    ).cast(pa.string())
    columns = [one_chunk(flat[name]) for name in ("path", "offset", "length", "size", "mtime")]
    no_address = pa.nulls(len(fields), pa.binary())
    structs = pa.StructArray.from_arrays(
        [field_names, *columns, no_address], fields=list(PARTS_TYPE.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=PARTS_TYPE)


def _labels(
    members: pa.Table, order: np.ndarray, fields: np.ndarray, starts: np.ndarray
) -> pa.Array:
    """Each sample's label: that of its `.cls`, else of the last member that has one."""
    labels = one_chunk(members["label"])
    if labels.null_count == len(labels):
        return pa.nulls(len(starts), pa.binary())
    there = labels.is_valid().to_numpy(zero_copy_only=False)[order]
    places = np.where(there, np.arange(len(order)), -1)
    chosen = np.maximum.reduceat(places, starts)
    rows = pa.array(order[np.maximum(chosen, 0)], mask=chosen < 0)
    return labels.take(rows)


def _refused(
    names: pa.Array,
    lacks: np.ndarray,
    twice: np.ndarray,
    bad: np.ndarray,
    wanted: SampleRequirement,
) -> pa.Table:
    where = np.flatnonzero(bad)
    pairs, kinds = np.unique(np.stack([lacks[where], twice[where]]), axis=1, return_inverse=True)
    reasons = [
        _ambiguous(int(more)) if more else wanted.reason(int(less)) for less, more in pairs.T
    ]
    return pa.table(
        {
            "uri": names.take(pa.array(where)),
            "split": pa.nulls(len(where), pa.string()),
            "reason": pa.array(reasons, pa.string()).take(pa.array(kinds.reshape(-1))),
        },
        schema=REFUSED_SCHEMA,
    )


def _ambiguous(twice: int) -> str:
    names = _names(twice) or [".cls" if twice >> CLASS_LABEL & 1 else ".json"]
    return f"two files of its name are {' and '.join(names)}"


def join_labels(codes: Sequence[int] | np.ndarray, names: Sequence[bytes]) -> pa.Array:
    """Labels by their places in `names`; -1 is none."""
    places = np.asarray(codes, np.int32)
    return pa.DictionaryArray.from_arrays(
        pa.array(places, mask=places < 0), pa.array(names, pa.binary())
    ).cast(pa.binary())


def as_members(files: pa.Table) -> pa.Table:
    """Whole files as members: without offset and length, and without label where they have none."""
    count = files.num_rows
    for name in ("offset", "length"):
        files = files.append_column(name, pa.nulls(count, pa.int64()))
    if "label" not in files.column_names:
        files = files.append_column("label", pa.nulls(count, pa.binary()))
    return files.select(MEMBER_SCHEMA.names)
