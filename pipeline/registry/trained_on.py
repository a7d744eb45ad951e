"""Record exactly which content a model was trained on, so that it is not judged on that content.

The record of a model version is a file of sha256 digests of 32 bytes, sorted, without duplicates.
They are the digests of the training sources' bytes, from the shard set's index. For rows of tables,
they are digests of what the model reads of a row. So a set that is made again from the same rows,
with other columns or in another file format, has the same digests.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.media.format import Media
from pipeline.registry.reading import Reading
from shards import ShardError, ShardInfo, ShardSet
from shards.index_cache import read_index

RECORD_FILE = "trained_on.sha256s"
TRAIN = "train"
_DIGEST = np.dtype("S32")


@dataclass(frozen=True)
class TrainedOn:
    """What a model was trained on.

    Attributes:
        digests: `S32 [digests]`, sorted, without duplicates.
        repeated: The share of the training samples whose digest occurs more than once.
    """

    digests: np.ndarray
    repeated: float


def trained_on(shard_set: ShardSet, media: Media) -> TrainedOn:
    """Return what a model that was trained on a set knows: the samples of the split `train`.

    Args:
        shard_set: The shard set.
        media: The model's formats, which are those of the set.

    Raises:
        ShardError: An index is missing or damaged.
    """
    if TRAIN not in shard_set.manifest.counts:
        return TrainedOn(np.empty(0, _DIGEST), 0.0)
    digests = sample_digests(shard_set, TRAIN, Reading(media, media))
    found, counts = np.unique(digests[digests != b""], return_counts=True)
    return TrainedOn(found, float(counts[counts > 1].sum() / max(1, counts.sum())))


def sample_digests(shard_set: ShardSet, split: str, reading: Reading) -> np.ndarray:
    """Return the digest of every sample of a split, in order.

    Args:
        shard_set: The shard set.
        split: The split.
        reading: How the set is read by the model whose record is to be searched.

    Returns:
        `S32 [samples]`; empty for a row that cannot be read.

    Raises:
        ShardError: The set has no such split, or an index is missing or damaged.
    """
    if reading.is_of_rows:
        return _row_digests(shard_set, split, reading)
    shards = shard_set.shards(split).to_pylist()
    found = [digest for shard in shards for digest in _source_digests(shard_set, shard)]
    return np.array(found, _DIGEST)


def _source_digests(shard_set: ShardSet, shard: dict[str, Any]) -> list[bytes]:
    num_classes = len(shard_set.manifest.classes)
    index = read_index(shard_set.location, shard_set.names, ShardInfo(**shard), num_classes)
    sha256s: pa.Array = index.source_sha256s
    try:
        digests = [bytes.fromhex(text) for text in sha256s.to_pylist()]
    except (TypeError, ValueError):
        digests = [b""]
    if any(len(digest) != _DIGEST.itemsize for digest in digests):
        raise ShardError(
            f"{shard_set.location}: index {index.info.number} has a source without a sha256; run "
            "'perceiver preprocess' again"
        )
    return digests


def _row_digests(shard_set: ShardSet, split: str, reading: Reading) -> np.ndarray:
    digests = np.zeros(shard_set.num_samples(split), _DIGEST)
    for batch in reading.batches(shard_set, split):
        good = batch.weights.numpy() > 0
        if not good.any():
            continue
        ((name, _),) = reading.formats.items()
        rows = batch.fields[name].numpy()[good]
        # NaN and zero each get one bit pattern, so that equal values have equal bytes.
        plain = np.where(np.isnan(rows), np.nan, rows + 0.0).astype("<f8")
        digests[batch.numbers.numpy()[good]] = [
            hashlib.sha256(row.tobytes()).digest() for row in plain
        ]
    return digests


def write_record(record: np.ndarray, path: Path) -> None:
    """Write a record, `S32 [digests]`, to a file."""
    path.write_bytes(record.tobytes())


def read_record(path: Path) -> np.ndarray:
    """Read a record, `S32 [digests]`, from a file.

    Raises:
        UserError: The file is not a record.
    """
    data = path.read_bytes()
    if len(data) % _DIGEST.itemsize:
        raise UserError(
            f"{path.name}: its {len(data)} bytes are not a whole number of sha256 digests of "
            f"{_DIGEST.itemsize} bytes"
        )
    return np.frombuffer(data, _DIGEST)
