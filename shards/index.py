"""A shard's index: one row for each sample, and the shard's own facts in the file's metadata."""

import json
from dataclasses import asdict
from typing import Self

import pyarrow as pa

from shards.digests import sha256_hex
from shards.errors import ShardError
from shards.index_check import check_index
from shards.listing_check import check_facts, check_listing
from shards.parquet import decode_parquet, encode_parquet
from shards.sample import Sample
from shards.shard_info import ShardInfo, index_name, shard_name
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
        ("sha256", pa.string()),  # of the sample's extent in the tar
        ("members", pa.list_(pa.field("element", _SPAN))),  # offset and length of each payload
    ]
)

_INFO_KEY = b"shard"

MAX_LISTING_BYTES = MAX_INDEX_BYTES = 1 << 30
"""Of the files; each is read whole."""


def max_index_bytes(num_samples: int) -> int:
    """More than an index of so many samples can need: 16 KiB for each; a URI may be long."""
    return min((1 << 20) + num_samples * (1 << 14), MAX_INDEX_BYTES)


class IndexBuilder:
    """Collects a shard's rows while its tar is written.

    Attributes:
        keys: of the samples added so far.
    """

    def __init__(self, number: int, split: str) -> None:
        self.keys: set[str] = set()
        self._number = number
        self._split = split
        self._rows: list[dict[str, object]] = []

    def add(self, sample: Sample, span: SampleSpan) -> None:
        """Notes where `sample` was written."""
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
        """The shard's facts and its index file."""
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


class ShardIndex:
    """A shard's index in memory: Arrow columns and numpy arrays, about 200 bytes a sample.

    Attributes:
        info: the shard's facts.
        keys, source_uris, source_sha256s, sha256s: Arrow string arrays [samples].
        targets: Arrow int64 array [samples], null where the sample has no class.
        member_names: the distinct names of members, in order of appearance.
    """

    def __init__(self, table: pa.Table, info: ShardInfo) -> None:
        self.info = info
        self.keys = table["key"].combine_chunks()
        self.source_uris = table["source_uri"].combine_chunks()
        self.source_sha256s = table["source_sha256"].combine_chunks()
        self.sha256s = table["sha256"].combine_chunks()
        self.targets = table["target"].combine_chunks()
        members = table["members"].combine_chunks()
        spans = members.values
        names = spans.field("name").dictionary_encode()
        self.member_names: list[str] = names.dictionary.to_pylist()
        # A memoryview gives Python's own integers, several times faster than an array does.
        self._name_codes = memoryview(names.indices.to_numpy())
        self._offsets = memoryview(spans.field("offset").to_numpy())
        self._lengths = memoryview(spans.field("length").to_numpy())
        self._first_span = memoryview(members.offsets.to_numpy())
        self._columns = self.member_names, self._name_codes, self._offsets, self._lengths

    @classmethod
    def decode(cls, data: bytes, where: str) -> Self:
        """Reads an index file's bytes; `where` names it in errors.

        Raises:
            ShardError: the bytes are damaged, or are not an index whose samples lie in its tar one
                after the other, as the format says.
        """
        table = decode_parquet(data, _SCHEMA, where)
        try:
            facts = json.loads((table.schema.metadata or {})[_INFO_KEY])
            info = ShardInfo(**facts, index_sha256=sha256_hex(data))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise ShardError(
                f"{where}: says nothing of its shard; run 'perceiver preprocess' again"
            ) from error
        check_facts(info, where)
        check_index(table, info, where)
        return cls(table, info)

    def check_listed(self, listed: ShardInfo, num_classes: int, where: str) -> None:
        """Refuses an index that is not the one that `shards.parquet` and the manifest tell of.

        Args:
            listed: the shard's row.
            num_classes: that targets index; 0 where there are none.
            where: names the index in errors.

        Raises:
            ShardError: its facts or targets differ.
        """
        if self.info != listed:
            raise ShardError(
                f"{where}: is of another shard than shards.parquet says; do not use this set, or "
                "make it again"
            )
        targets = self.targets.drop_null().to_numpy()
        if num_classes and len(targets) and not 0 <= targets.min() <= targets.max() < num_classes:
            raise ShardError(
                f"{where}: a target is none of the {num_classes} classes; do not use this set, or "
                "make it again"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, row: int) -> list[MemberSpan]:
        """Where the members of sample `row` lie in the tar."""
        names, codes = self.member_names, self._name_codes
        return [
            MemberSpan(names[codes[span]], self._offsets[span], self._lengths[span])
            for span in range(self._first_span[row], self._first_span[row + 1])
        ]

    def bounds(self, row: int) -> list[tuple[str, int, int]]:
        """(name, first byte, one past last) of each member of sample `row`: `members`, sooner."""
        names, codes, offsets, lengths = self._columns
        first, stop = self._first_span[row : row + 2]
        return [
            (names[codes[span]], start := offsets[span], start + lengths[span])
            for span in range(first, stop)
        ]

    @property
    def nbytes(self) -> int:
        """Memory that this index takes."""
        arrays = (self.keys, self.source_uris, self.source_sha256s, self.sha256s, self.targets)
        views = (self._name_codes, self._offsets, self._lengths, self._first_span)
        return sum(array.nbytes for array in arrays) + sum(view.nbytes for view in views)

    def drop_hashes(self, *, of_samples: bool) -> None:
        """Lets go the hashes of sources, and of samples if so asked: half of the memory."""
        self.source_sha256s = pa.nulls(len(self))
        if of_samples:
            self.sha256s = pa.nulls(len(self))

    def extent(self, row: int) -> tuple[int, int]:
        """(first, one past last) byte of sample `row` in its tar, as `sample_extent`, sooner."""
        start, stop = self.payloads(row)
        return start - BLOCK_BYTES, round_up(stop)

    def payloads(self, row: int) -> tuple[int, int]:
        """(first, one past last) byte of the members of sample `row`, without the first header."""
        first, last = self._first_span[row], self._first_span[row + 1] - 1
        return self._offsets[first], self._offsets[last] + self._lengths[last]


_LISTING_SCHEMA = pa.schema(
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


def encode_listing(infos: list[ShardInfo]) -> bytes:
    """`shards.parquet`: one row for each shard, in the order given."""
    return encode_parquet(pa.Table.from_pylist(list(map(asdict, infos)), schema=_LISTING_SCHEMA))


def decode_listing(data: bytes, where: str) -> pa.Table:
    """The table in a `shards.parquet`: columns as in `ShardInfo`, a row for each shard.

    Raises:
        ShardError: the bytes are damaged, or a field is not what it may be.
    """
    table = decode_parquet(data, _LISTING_SCHEMA, where)
    check_listing(table, where)
    return table
