"""Check that the rows of `shards.parquet` are valid and agree with the manifest."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.arrow_values import as_numpy, text_scalar
from shards.errors import ShardError
from shards.plain import is_count, is_name, is_sha256
from shards.shard_info import ShardInfo, shard_name
from shards.tar import BLOCK_BYTES, END_OF_ARCHIVE

SHA256_PATTERN = r"\A[0-9a-f]{64}\z"
_SHA256_DIGITS = 64
_HEXADECIMAL = b"0123456789abcdef"

MAX_BYTES = 1 << 50
"""The largest tar, in bytes."""

_MAX_NUMBER = 10**9
"""The largest shard number."""


def check_shard_table(table: pa.Table, where: str) -> None:
    """Reject a shard table with a field out of its range.

    The name of a tar follows from its number, so no row can name another file.

    Args:
        table: The rows of `shards.parquet`.
        where: The name of the file in errors.

    Raises:
        ShardError: A column is invalid; the message names it.
    """
    if any(column.null_count for column in table.columns):
        raise _refused(where, "a field is missing")
    numbers, samples, sizes = (as_numpy(table[name]) for name in ("number", "samples", "bytes"))
    if len(numbers) and (
        numbers[0] < 0 or numbers[-1] > _MAX_NUMBER or not (np.diff(numbers) > 0).all()
    ):
        raise _refused(where, "the numbers of shards are negative, huge, repeated or out of order")
    names = pc.binary_join_element_wise(
        text_scalar("shard-"),
        pc.utf8_lpad(pc.cast(table["number"], pa.string()), 5, "0"),
        text_scalar(".tar"),
        text_scalar(""),
    )
    if not _all(pc.equal(table["name"], names)):
        raise _refused(where, "the name of a tar does not match its number")
    splits = pc.unique(table["split"]).to_pylist()
    if not all(map(is_name, splits)):
        raise _refused(where, "the name of a split is invalid")
    for name in ("sha256", "index_sha256"):
        if not are_sha256s(table[name]):
            raise _refused(where, f"{name} is not 64 hexadecimal digits")
    if len(sizes) and (sizes.min() < 0 or sizes.max() > MAX_BYTES or (sizes % BLOCK_BYTES).any()):
        raise _refused(where, "the size of a tar is negative, huge or not a multiple of 512 bytes")
    most = (sizes - len(END_OF_ARCHIVE)) // BLOCK_BYTES  # each sample needs at least a header
    if len(samples) and (samples.min() < 1 or (samples > most).any()):
        raise _refused(where, "a tar has no samples, or more than fit in its size")


def check_counts(table: pa.Table, counts: Mapping[str, int], where: str) -> None:
    """Reject a shard table whose sample counts differ from the manifest's `counts`.

    Args:
        table: The rows of `shards.parquet`.
        counts: The samples of each split.
        where: The name of the file in errors.

    Raises:
        ShardError: A split has another count; the message names it.
    """
    splits = table["split"].combine_chunks().dictionary_encode()
    sums = np.zeros(len(splits.dictionary), np.int64)
    np.add.at(sums, as_numpy(splits.indices), as_numpy(table["samples"]))
    found = dict(zip(splits.dictionary.to_pylist(), sums.tolist(), strict=True))
    for split in sorted({**found, **counts}):
        if found.get(split, 0) != counts.get(split, 0):
            raise _refused(
                where,
                f"split {split!r} has {found.get(split, 0)} samples, but the manifest says "
                f"{counts.get(split, 0)}",
            )


def are_sha256s(digests: pa.ChunkedArray) -> bool:
    """Return whether every string is 64 lower-case hexadecimal digits. None may be missing."""
    return all(map(_are_sha256s, digests.chunks))


def _are_sha256s(digests: pa.Array) -> bool:
    lengths = np.diff(string_offsets(digests))
    if not (lengths == _SHA256_DIGITS).all():
        return False
    first = int(string_offsets(digests)[0]) if len(digests) else 0
    characters = memoryview(digests.buffers()[2] or b"")
    characters = characters[first : first + _SHA256_DIGITS * len(digests)]
    return not bytes(characters).translate(
        None, _HEXADECIMAL
    )  # what is left when these are removed


def string_offsets(strings: pa.Array) -> np.ndarray:
    """Return where each string begins in the buffer of characters, and the last one ends."""
    offsets = np.frombuffer(strings.buffers()[1] or bytes(4), np.int32)
    return offsets[strings.offset : strings.offset + len(strings) + 1]


def check_facts(info: ShardInfo, where: str) -> None:
    """Reject the shard's facts in the metadata of an index if one is out of its range.

    Raises:
        ShardError: A fact is invalid; the message names it and the file, `where`.
    """
    if not is_count(info.number, _MAX_NUMBER) or info.name != shard_name(info.number):
        raise _refused(where, "the name of its tar does not match its number")
    if not is_name(info.split):
        raise _refused(where, "the name of its split is invalid")
    if not is_count(info.samples) or not is_count(info.bytes, MAX_BYTES):
        raise _refused(where, "its samples or bytes are not a number, negative or huge")
    if not is_sha256(info.sha256):
        raise _refused(where, "sha256 is not 64 hexadecimal digits")


def _all(values: pa.ChunkedArray) -> bool:
    return pc.all(values, min_count=0).as_py() is True


def _refused(where: str, what: str) -> ShardError:
    return ShardError(f"{where}: {what}; do not use this set, or make it again")
