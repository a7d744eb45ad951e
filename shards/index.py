"""A shard's index: one row for each sample, and facts about the shard in the file's metadata."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Self

import pyarrow as pa

from shards.arrow_values import as_array, as_numpy
from shards.digests import sha256_hex
from shards.errors import ShardError
from shards.index_check import check_index
from shards.parquet import decode_parquet, encode_parquet
from shards.sample import Sample
from shards.shard_info import ShardInfo, index_name, shard_name
from shards.shard_table_check import check_facts, check_shard_table
from shards.tar import BLOCK_BYTES, MemberSpan, SampleSpan, round_up

__all__ = ["IndexBuilder", "ShardIndex", "ShardInfo", "index_name", "shard_name"]

_SPAN = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("target", pa.int64()),
        ("split", pa.string()),
        ("source_uri", pa.string()),
        ("source_sha256", pa.string()),
        ("sha256", pa.string()),  # of the sample's extent in the tar, see `sample_extent`
        ("members", pa.list_(pa.field("element", _SPAN))),  # offset and length of the payloads
    ]
)

_OF_SAMPLES = ("key", "target", "sha256", "members")
"""The columns that reading samples needs."""

_INFO_KEY = b"shard"

MAX_SHARD_TABLE_BYTES = MAX_INDEX_BYTES = 1 << 30
"""The largest file that is read. Each of these files is read whole."""


def max_index_bytes(num_samples: int) -> int:
    """Return more bytes than an index needs: 16 KiB per sample, because a URI may be long."""
    return min((1 << 20) + num_samples * (1 << 14), MAX_INDEX_BYTES)


class IndexBuilder:
    """Collect the rows of a shard's index while its tar is written.

    Attributes:
        keys: The keys of the samples added so far.
    """

    def __init__(self, number: int, split: str) -> None:
        self.keys: set[str] = set()
        self._number = number
        self._split = split
        self._rows: list[dict[str, object]] = []

    def add(self, sample: Sample, span: SampleSpan) -> None:
        """Add the row of `sample`, which was written at `span`."""
        self.keys.add(sample.key)
        self._rows.append(
            {
                "key": sample.key,
                "target": sample.target,
                "split": self._split,
                "source_uri": sample.source_uri,
                "source_sha256": sample.source_sha256,
                "sha256": span.sha256,
                "members": [member._asdict() for member in span.members],
            }
        )

    def encode(self, tar_bytes: int, tar_sha256: str) -> tuple[ShardInfo, bytes]:
        """Return the shard's facts and the bytes of its index file."""
        facts = {
            "number": self._number,
            "name": shard_name(self._number),
            "split": self._split,
            "samples": len(self._rows),
            "bytes": tar_bytes,
            "sha256": tar_sha256,
        }
        schema = _SCHEMA.with_metadata({_INFO_KEY: json.dumps(facts, sort_keys=True)})
        data = encode_parquet(pa.Table.from_pylist(self._rows, schema=schema))
        return ShardInfo(**facts, index_sha256=sha256_hex(data)), data  # type: ignore[arg-type]  # facts are the other fields


ReadWhole = Callable[[], "ShardIndex"]


class ShardIndex:
    """A shard's index in memory: Arrow columns and numpy arrays, about 200 bytes per sample.

    Attributes:
        info: The facts about the shard.
        keys: The keys of the samples, Arrow strings [samples].
        sha256s: The sha256 of each sample's extent in the tar, Arrow strings [samples].
        targets: The class numbers, Arrow int64 [samples], null for a sample without a class.
        member_names: The distinct names of members, in order of appearance.
    """

    def __init__(self, table: pa.Table, info: ShardInfo, whole: ReadWhole | None = None) -> None:
        self.info = info
        self._whole = whole
        self._source_uris = None if whole else as_array(table["source_uri"])
        self._source_sha256s = None if whole else as_array(table["source_sha256"])
        self.keys = as_array(table["key"])
        self.sha256s = as_array(table["sha256"])
        self.targets = as_array(table["target"])
        members = as_array(table["members"])
        spans = members.values
        names = spans.field("name").dictionary_encode()
        self.member_names: list[str] = names.dictionary.to_pylist()
        # Items of a memoryview are Python integers, several times faster than items of an array.
        self._name_codes = as_numpy(names.indices).data
        self._offsets = as_numpy(spans.field("offset")).data
        self._lengths = as_numpy(spans.field("length")).data
        self._first_span = as_numpy(members.offsets).data
        self._columns = self.member_names, self._name_codes, self._offsets, self._lengths

    @classmethod
    def decode(
        cls,
        data: bytes,
        where: str,
        *,
        sha256: str | None = None,
        whole: ReadWhole | None = None,
    ) -> Self:
        """Decode the bytes of an index file.

        Args:
            data: The whole file.
            where: The name of the file in errors.
            sha256: The sha256 of the file, if it is known.
            whole: Reads the whole index. If given, only what reading samples needs is decoded and
                checked now, and the sources of the samples once they are asked for.

        Raises:
            ShardError: The bytes are damaged, are not an index, or the samples do not follow each
                other in the tar as the format requires.
        """
        columns = _OF_SAMPLES if whole else None
        table = decode_parquet(data, _SCHEMA, where, columns=columns)
        try:
            facts = json.loads((table.schema.metadata or {})[_INFO_KEY])
            info = ShardInfo(**facts, index_sha256=sha256 or sha256_hex(data))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise ShardError(
                f"{where}: lacks the facts about its shard; run 'perceiver preprocess' again"
            ) from error
        check_facts(info, where)
        check_index(table, info, where)
        return cls(table, info, whole)

    def check_listed(self, listed: ShardInfo, num_classes: int, where: str) -> None:
        """Compare the index with `shards.parquet` and the manifest.

        Args:
            listed: The shard's row in `shards.parquet`.
            num_classes: The number of classes; 0 if the set has none.
            where: The name of the index in errors.

        Raises:
            ShardError: The facts differ, or a target is not a class.
        """
        if self.info != listed:
            raise ShardError(
                f"{where}: belongs to another shard than shards.parquet says; do not use this set, "
                "or make it again"
            )
        targets = as_numpy(self.targets.drop_null())
        if num_classes and len(targets) and not 0 <= targets.min() <= targets.max() < num_classes:
            raise ShardError(
                f"{where}: a target is not one of the {num_classes} classes; do not use this set, "
                "or make it again"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, row: int) -> list[MemberSpan]:
        """Return the offset and length of each member of sample `row` in the tar."""
        names, codes = self.member_names, self._name_codes
        return [
            MemberSpan(names[codes[span]], self._offsets[span], self._lengths[span])
            for span in range(self._first_span[row], self._first_span[row + 1])
        ]

    def bounds(self, row: int) -> list[tuple[str, int, int]]:
        """Return (name, start, stop) of each member of sample `row`. Faster than `members`."""
        names, codes, offsets, lengths = self._columns
        first, stop = self._first_span[row : row + 2]
        return [
            (names[codes[span]], start := offsets[span], start + lengths[span])
            for span in range(first, stop)
        ]

    @property
    def source_uris(self) -> pa.Array:
        """The sources of the samples, Arrow strings [samples]. Raises what reading them raises."""
        if self._source_uris is None:
            assert self._whole is not None
            self._source_uris = self._whole().source_uris
        return self._source_uris

    @property
    def source_sha256s(self) -> pa.Array:
        """The sha256 of each source, Arrow strings [samples]. Raises what reading them raises."""
        if self._source_sha256s is None:
            assert self._whole is not None
            self._source_sha256s = self._whole().source_sha256s
        return self._source_sha256s

    @property
    def nbytes(self) -> int:
        """The memory that this index takes, in bytes, without sources that are read later."""
        arrays = (self.keys, self._source_uris, self._source_sha256s, self.sha256s, self.targets)
        views = (self._name_codes, self._offsets, self._lengths, self._first_span)
        return sum(each.nbytes for each in (*arrays, *views) if each is not None)

    def drop_sample_hashes(self) -> None:
        """Release the hashes of samples, half of the memory."""
        self.sha256s = pa.nulls(len(self))

    def extent(self, row: int) -> tuple[int, int]:
        """Return the range [start, stop) of sample `row` in its tar; see `sample_extent`."""
        start, stop = self.payloads(row)
        return start - BLOCK_BYTES, round_up(stop)

    def payloads(self, row: int) -> tuple[int, int]:
        """Return the range [start, stop) of sample `row` without its first header."""
        first, last = self._first_span[row], self._first_span[row + 1] - 1
        return self._offsets[first], self._offsets[last] + self._lengths[last]


_SHARD_TABLE_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("name", pa.string()),
        ("split", pa.string()),
        ("samples", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("index_sha256", pa.string()),
    ]
)


def encode_shard_table(infos: list[ShardInfo]) -> bytes:
    """Encode `shards.parquet`: one row for each shard, in the given order."""
    return encode_parquet(
        pa.Table.from_pylist(list(map(asdict, infos)), schema=_SHARD_TABLE_SCHEMA)
    )


def decode_shard_table(data: bytes, where: str) -> pa.Table:
    """Decode a `shards.parquet`.

    Args:
        data: The whole file.
        where: The name of the file in errors.

    Returns:
        A table with one row for each shard and the columns of `ShardInfo`.

    Raises:
        ShardError: The bytes are damaged, or a field has an invalid value.
    """
    table = decode_parquet(data, _SHARD_TABLE_SCHEMA, where)
    check_shard_table(table, where)
    return table
