"""Holds samples out and orders all of them, by hashes, so that neither changes later."""

import hashlib
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import SPLITS
from pipeline.errors import UserError
from pipeline.preprocess.sources.tables import BATCH_ROWS, binary_parts, one_chunk

TRAIN, VALIDATION, TEST = range(len(SPLITS))


def ranks(names: pa.Array | pa.ChunkedArray, split: str, seed: int) -> np.ndarray:
    r"""Return a number for each sample that depends only on its name and the seed.

    The number is the first 8 bytes of the sha256 of `SEED\0SPLIT/NAME`.

    Args:
        names: The names of the samples, binary.
        split: The name of the split that is hashed.
        seed: The seed.

    Returns:
        uint64 `[samples]`.
    """
    started = hashlib.sha256(f"{seed}\0{split}/".encode())
    found = bytearray()
    for begin in range(0, len(names), BATCH_ROWS):
        offsets, data = binary_parts(one_chunk(names.slice(begin, BATCH_ROWS)))
        ends = offsets.tolist()
        for start, end in pairwise(ends):
            hashed = started.copy()
            hashed.update(data[start:end])
            found += hashed.digest()[:8]
    return np.frombuffer(found, ">u8").astype(np.uint64)


def hold_out(
    samples: pa.Table,
    share: float,
    seed: int,
    known: pa.Table | None,
    classes: tuple[str, ...],
    targets: np.ndarray,
) -> np.ndarray:
    """Hold out `share` of each class for validation, and at least one of its samples.

    The choice is by hash, so that it stays the same.

    Args:
        samples: A table with the column `name`.
        share: The share of each class. The samples in `known` count.
        seed: The seed of the hash.
        known: The columns `uri` and `split` of earlier samples, which stay in their split.
        classes: The names of the classes; empty if all samples count as one class.
        targets: The class numbers, int64 `[samples]`.

    Returns:
        The index in `SPLITS` of each sample, int8 `[samples]`.

    Raises:
        UserError: A class has only one sample.
    """
    counts = np.bincount(targets, minlength=max(1, len(classes)))
    if (counts == 1).any():
        what = f"class {classes[int(np.argmax(counts == 1))]!r} has" if classes else "there is"
        raise UserError(
            f"data.validation={share:g}: {what} only one file, so none would be left to train on; "
            "add files, or give validation a folder of its own"
        )
    splits = known_splits(samples, known)
    wanted = np.minimum(np.maximum(1, np.rint(share * counts)), np.maximum(counts - 1, 0))
    held = np.bincount(targets[splits == VALIDATION], minlength=len(counts))
    missing = np.maximum(wanted - held, 0)
    new = np.flatnonzero(splits < 0)
    by_rank = new[np.lexsort((ranks(samples["name"], SPLITS[TRAIN], seed)[new], targets[new]))]
    firsts = np.searchsorted(targets[by_rank], np.arange(len(counts)))
    rank = np.arange(len(by_rank)) - firsts[targets[by_rank]]
    splits[by_rank] = np.where(rank < missing[targets[by_rank]], VALIDATION, TRAIN)
    return splits


def known_splits(samples: pa.Table, known: pa.Table | None) -> np.ndarray:
    """Return the splits of earlier samples, and -1 for new ones."""
    splits = np.full(samples.num_rows, -1, np.int8)
    if known is None or not known.num_rows:
        return splits
    names = one_chunk(samples["name"])
    given = known["split"].cast(pa.string())
    for code in (TRAIN, VALIDATION):
        uris = one_chunk(known.filter(pc.equal(given, SPLITS[code]))["uri"]).cast(pa.binary())
        ours = pc.binary_join_element_wise(pa.scalar(SPLITS[code].encode()), names, b"/")
        there = pc.is_in(ours, value_set=uris).to_numpy(zero_copy_only=False)
        splits[there] = code
    return splits


def order_of(splits: np.ndarray, names: pa.Table, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return the order of samples in shards: by split, then by row, or by hash without a row.

    Args:
        splits: The index in `SPLITS` of each sample, int8 `[samples]`.
        names: A table with the column `name`.
        rows: The row of each sample in a listing, -1 if it has none, int64 `[samples]`.
        seed: The seed of the hash.

    Returns:
        The indices of the samples in their order, int64 `[samples]`.
    """
    keys = rows.astype(np.uint64)
    for code, split in enumerate(SPLITS):
        where = np.flatnonzero((splits == code) & (rows < 0))
        if len(where) == len(splits):
            keys = ranks(names["name"], split, seed)
        elif len(where):
            keys[where] = ranks(names["name"].take(pa.array(where)), split, seed)
    return np.lexsort((keys, splits))
