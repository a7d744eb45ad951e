"""The mean and standard deviation of the targets of a shard set's training samples."""

import json
import math

import numpy as np

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.inputs.batches import decode_target
from pipeline.runs.records import write_json
from pipeline.runs.storage import make_folder, read_bytes
from shards import ShardError, ShardReader, ShardSet

_MAX_BYTES = 64 << 20
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def target_statistics(shard_set: ShardSet, folder: Folder) -> Statistics:
    """Return the mean and the standard deviation of each number over the training samples.

    They are computed once, and kept in the folder under the digest of the set. Samples that cannot
    be read are left out, as a training leaves them out. The result is then not kept, because the
    set may be mended under the same digest.

    Args:
        shard_set: A shard set with targets of the kind `regression`.
        folder: The folder of the configuration. All workers share it.

    Returns:
        The means and the standard deviations, one of each for each number. A standard deviation of
        0 is returned as 1.

    Raises:
        UserError: No training sample can be read.
    """
    path = folder / f"target-statistics-{shard_set.digest[:16]}.json"
    if (kept := _read(path, shard_set.digest)) is not None:
        return kept
    (means, stds), is_whole = _computed(shard_set)
    if is_whole:
        make_folder(folder)
        write_json(path, {"digest": shard_set.digest, "means": means, "stds": stds})
    return means, stds


def _read(path: Folder, digest: str) -> Statistics | None:
    """Return the statistics in a file; None if it does not hold those of this set."""
    try:
        content = json.loads(read_bytes(path, _MAX_BYTES))
        if content["digest"] != digest:
            return None
        means, stds = (tuple(map(float, content[key])) for key in ("means", "stds"))
    except (OSError, ShardError, ValueError, TypeError, KeyError, RecursionError):
        return None
    valid = all(map(math.isfinite, means + stds)) and all(std > 0 for std in stds)
    return (means, stds) if valid and len(means) == len(stds) > 0 else None


def _computed(shard_set: ShardSet) -> tuple[Statistics, bool]:
    """Return the statistics, and whether every training sample could be read."""
    reader, rows = ShardReader(shard_set, "train", verify_samples=False), []
    for number in range(len(reader)):
        try:
            rows.append(decode_target(reader.read(number)).astype(np.float64))
        except (ShardError, ValueError):
            continue
    if not rows:
        raise UserError(
            f"{shard_set.location}: no target of a training sample can be read; run "
            "'perceiver verify'"
        )
    targets = np.stack(rows)
    stds = targets.std(axis=0)
    stds[stds == 0] = 1.0
    statistics = tuple(targets.mean(axis=0).tolist()), tuple(stds.tolist())
    return statistics, len(rows) == len(reader)
