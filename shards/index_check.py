"""Check that an index describes a tar that is valid in this format."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.arrow_values import as_array, as_numpy, text_scalar
from shards.errors import ShardError
from shards.plain import is_member
from shards.sample import KEY_PATTERN, MAX_MEMBER_BYTES, MAX_NAME_BYTES
from shards.shard_info import ShardInfo
from shards.shard_table_check import are_sha256s, string_offsets
from shards.tar import BLOCK_BYTES, END_OF_ARCHIVE

_FORBIDDEN = bytes(byte for byte in range(128) if byte < 32 or byte in b"./\x7f")
"""The ASCII characters that `KEY_PATTERN` excludes."""


def check_index(table: pa.Table, info: ShardInfo, where: str) -> None:
    """Reject an index whose members do not follow each other in a tar of `info.bytes` bytes.

    The lengths alone determine all offsets. Each member has a header of 512 bytes, a payload, and
    zeros up to the next multiple of 512. So every range lies inside the tar, and no two overlap.

    Args:
        table: The index, one row for each sample, with all columns or those of `samples`.
        info: The facts about the shard.
        where: The name of the index in errors.

    Raises:
        ShardError: A column is invalid; the message names it.
    """
    columns = {name: as_array(table[name]) for name in table.schema.names}
    if len(table) != info.samples:
        raise _refused(where, f"it has {len(table)} rows, but its shard has {info.samples} samples")
    if any(column.null_count for name, column in columns.items() if name != "target"):
        raise _refused(where, "a field is missing")
    if "split" in columns and not _all(pc.equal(columns["split"], text_scalar(info.split))):
        raise _refused(where, "a sample has another split than its shard")
    for name in ("sha256", "source_sha256"):
        if name in columns and not are_sha256s(table[name]):
            raise _refused(where, f"{name} is not 64 hexadecimal digits")
    keys = columns["key"]
    if not _are_keys(keys) or pc.count_distinct(keys).as_py() != len(keys):
        raise _refused(where, "the keys are not distinct valid names")
    _check_spans(columns["members"], keys, info, where)


def _check_spans(members: pa.ListArray, keys: pa.Array, info: ShardInfo, where: str) -> None:
    first, spans = as_numpy(members.offsets), members.flatten()
    first = first - first[0]
    names, offsets, lengths = (spans.field(name) for name in ("name", "offset", "length"))
    if spans.null_count or names.null_count or offsets.null_count or lengths.null_count:
        raise _refused(where, "a field of a member is missing")
    sizes = np.diff(first)
    if len(sizes) and sizes.min() < 1:
        raise _refused(where, "a sample has no members")
    coded = names.dictionary_encode()
    words = coded.dictionary.to_pylist()
    if not all(map(is_member, words)):
        raise _refused(where, "the name of a member is invalid")
    # Ranks follow the alphabetical order of the names, so they must rise within each sample.
    order = np.argsort(np.argsort(np.array(words, dtype=object))) if words else np.zeros(0, int)
    ranks = order[as_numpy(coded.indices)]
    rises = np.diff(ranks) > 0
    rises[first[1:-1] - 1] = True  # the step from one sample to the next may fall
    if not rises.all():
        raise _refused(where, "the members of a sample are repeated or out of order")
    key_bytes = np.diff(string_offsets(keys))
    longest = max(map(len, words), default=0)
    if len(words) and key_bytes.max() + 1 + longest > MAX_NAME_BYTES:  # of any key and any name
        name_bytes = np.array([len(word) for word in words], np.int64)[as_numpy(coded.indices)]
        if (np.repeat(key_bytes, sizes) + 1 + name_bytes).max() > MAX_NAME_BYTES:
            raise _refused(
                where, f"a member's name in the tar has more than {MAX_NAME_BYTES} bytes"
            )
    _check_offsets(as_numpy(offsets), as_numpy(lengths), info.bytes, where)


def _check_offsets(offsets: np.ndarray, lengths: np.ndarray, size: int, where: str) -> None:
    if not len(lengths):
        if size:
            raise _refused(where, "the shard has no samples but a tar")
        return
    if lengths.min() < 0 or lengths.max() > min(size, MAX_MEMBER_BYTES):
        raise _refused(where, "a member's length is negative or exceeds its tar")
    steps = -(-lengths // BLOCK_BYTES) * BLOCK_BYTES + BLOCK_BYTES
    ends = np.cumsum(steps)  # fits in int64: a length is below 2**33, and a list has < 2**31 items
    if not np.array_equal(offsets, ends - steps + BLOCK_BYTES):
        raise _refused(where, "a member does not follow the previous one")
    if ends[-1] + len(END_OF_ARCHIVE) != size:
        raise _refused(where, "its members do not fill the tar")


def _are_keys(keys: pa.Array) -> bool:
    """Return whether all are valid keys. ASCII, which is usual, needs no regular expression."""
    ends = string_offsets(keys)
    text = bytes(memoryview(keys.buffers()[2] or b"")[ends[0] : ends[-1]])
    if text.isascii():
        lengths = np.diff(ends)
        return bool(lengths.all()) and len(text.translate(None, _FORBIDDEN)) == len(text)
    return _all(pc.match_substring_regex(keys, KEY_PATTERN))


def _all(values: pa.Array) -> bool:
    return pc.all(values, min_count=0).as_py() is True


def _refused(where: str, what: str) -> ShardError:
    return ShardError(f"{where}: {what}; do not use this set, or make it again")
