"""Groups files or tar members of one name into samples, with vectorised operations."""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.media.registered import modality
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
        modalities: The modalities that a sample may have. It needs at least one.
        missing: Those of the modalities that a sample may lack.
        target: The field of the target's file, or None.
    """

    modalities: tuple[str, ...]
    missing: tuple[str, ...] = ()
    target: str | None = None

    def lacks(self, present: np.ndarray) -> np.ndarray:
        """Return the missing fields of each sample as bits.

        Args:
            present: The fields that each sample has, as bits, int64 `[samples]`.

        Returns:
            int64 `[samples]`; 0 if nothing is missing.
        """
        required = bits_of(set(self.modalities) - set(self.missing))
        lacks = required & ~present
        for name in self.modalities:  # a video brings its own sound
            if brought := modality(name).brings:
                lacks[present & bits_of({name}) != 0] &= ~bits_of(brought)
        if self.target:
            lacks |= bits_of({self.target}) & ~present
        lacks[present & bits_of(set(self.modalities)) == 0] |= _NOTHING
        return lacks

    def reason(self, lacks: int) -> str:
        """Say in words what a sample lacks."""
        if lacks & _NOTHING:
            return f"none of its files is {' or '.join(self.modalities)}"
        return f"it has no {' and no '.join(_names(lacks))}"


_NOTHING = 1 << 60


def bits_of(fields: Set[str]) -> int:
    """Return fields as bits, by their codes."""
    return sum(1 << FIELD_CODES[field] for field in fields)


def _names(bits: int) -> list[str]:
    return [field for field in PART_FIELDS if bits & bits_of({field})]


def group(members: pa.Table, wanted: SampleRequirement) -> tuple[pa.Table, pa.Table]:
    """Make a sample of the members that share a key.

    Args:
        members: The members, of `MEMBER_SCHEMA`. The column `field` holds codes of `FIELD_CODES`.
        wanted: What a sample must have.

    Returns:
        The samples of `FOUND_SCHEMA`, all in the first split, and the refused ones of
        `REFUSED_SCHEMA`.
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
            "group": pa.nulls(len(starts), pa.binary()),
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
    """Make the column `parts`.

    Args:
        offsets: The rows of `flat` at which each sample's files begin and end, `[samples + 1]`.
        fields: The codes of the files' fields, `[files]`.
        flat: A row for each file, with path, offset, length, size and mtime.
    """
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
    """Return each sample's label: from its `.cls`, or else from its last member that has one."""
    labels = one_chunk(members["label"])
    if labels.null_count == len(labels):
        return pa.nulls(len(starts), pa.binary())
    there = labels.is_valid().to_numpy(zero_copy_only=False)[order]
    indices = np.where(there, np.arange(len(order)), -1)
    chosen = np.maximum.reduceat(indices, starts)
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


def as_members(files: pa.Table) -> pa.Table:
    """Turn whole files into members, without offsets, lengths and (if they have none) labels."""
    count = files.num_rows
    for name in ("offset", "length"):
        files = files.append_column(name, pa.nulls(count, pa.int64()))
    if "label" not in files.column_names:
        files = files.append_column("label", pa.nulls(count, pa.binary()))
    return files.select(MEMBER_SCHEMA.names)
