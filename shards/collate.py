"""Stack the arrays of several samples into one array per field. Each array is copied once."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from shards.errors import ShardError
from shards.npy import decode_npy
from shards.raw_sample import RawSample

Fields: TypeAlias = dict[str, np.ndarray]
"""The arrays of a sample, by field name."""

Allocate: TypeAlias = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]
"""Takes a field's name, shape and dtype, and returns an array with uninitialised content."""


def decode_arrays(sample: RawSample) -> Fields:
    """Decode the members of a sample that are .npy files.

    Returns:
        The arrays by member name. They are views of the shard.

    Raises:
        ShardError: The sample has no such member, or one is damaged.
    """
    members = sample.members
    arrays = {
        name: decode_npy(content)
        for name, content in members.items()
        if name == "npy" or name.endswith(".npy")
    }
    if not arrays:
        raise ShardError(
            f"sample {sample.key!r} has no .npy member, only {', '.join(members)}; "
            "give the loader a decode function"
        )
    return arrays


def collate(
    samples: Sequence[Fields | None], pad_to: Mapping[str, int], allocate: Allocate
) -> Fields:
    """Stack samples into one array [batch, ...] for each field.

    If the first axis differs in length between samples, or if `pad_to` names the field, shorter
    arrays are padded with zeros. A sample that is None, or that lacks the field, gives a row of
    zeros.

    Args:
        samples: The samples of the batch, in order.
        pad_to: Maps a field to the length of its first axis.
        allocate: Allocates the array of each field, which this function fills.

    Returns:
        The lengths, int64 [batch], for each field: the length of the first axis of each sample's
        array. The length of a missing array is 0, that of a scalar is 1.

    Raises:
        ShardError: The samples have different shapes or dtypes in a field, or an array is longer
            than `pad_to` allows.
    """
    names = sorted({name for arrays in samples if arrays is not None for name in arrays})
    lengths = {}
    for name in names:
        rows = [None if arrays is None else arrays.get(name) for arrays in samples]
        lengths[name] = _stack(name, rows, pad_to.get(name), allocate)
    return lengths


def _stack(
    name: str, rows: list[np.ndarray | None], pad_to: int | None, allocate: Allocate
) -> np.ndarray:
    arrays = [row for row in rows if row is not None]
    kinds = {(row.dtype, row.ndim, row.shape[1:]) for row in arrays}
    if len(kinds) > 1:
        found = " and ".join(sorted({f"{row.dtype} {list(row.shape)}" for row in arrays})[:2])
        raise ShardError(f"field {name!r}: a batch has {found}; decode samples to one shape")
    ((dtype, ndim, rest),) = kinds
    lengths = np.array([0 if row is None else (len(row) if ndim else 1) for row in rows], np.int64)
    length = int(lengths.max()) if pad_to is None else pad_to
    if lengths.max() > length:
        raise ShardError(
            f"field {name!r}: a sample has {lengths.max()} entries and pad_to {length}; "
            "increase pad_to or decode samples to fewer"
        )
    field = allocate(name, (len(rows), length, *rest) if ndim else (len(rows),), dtype)
    for index, (row, own) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        if row is None or ndim == 0:
            field[index] = 0 if row is None else row
        else:
            field[index, :own] = row
            field[index, own:] = 0
    return lengths
