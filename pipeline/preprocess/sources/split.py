"""Holds samples out and orders all of them, by hashes, so that neither changes later."""

import hashlib
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import SPLITS
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


def order_of(splits: np.ndarray, samples: pa.Table, seed: int) -> np.ndarray:
    """Return the key that orders each sample within its split: its row, or a hash without a row.

    Args:
        splits: The index in `SPLITS` of each sample, int8 `[samples]`.
        samples: A table with the columns `name` and `row`.
        seed: The seed of the hash.

    Returns:
        uint64 `[samples]`.
    """
    rows = samples["row"].fill_null(-1).to_numpy()
    keys = rows.astype(np.uint64)
    for code, split in enumerate(SPLITS):
        where = np.flatnonzero((splits == code) & (rows < 0))
        if len(where) == len(splits):
            keys = ranks(samples["name"], split, seed)
        elif len(where):
            keys[where] = ranks(samples["name"].take(pa.array(where)), split, seed)
    return keys
