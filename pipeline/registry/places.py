"""Where the samples of a split come from: the folders of their sources, and their groups."""

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.preprocess.identity import data_config
from pipeline.preprocess.sources.sample_groups import groups_by_pattern
from pipeline.registry.slices import Places
from pipeline.runs.console import Console
from shards import ShardInfo, ShardSet
from shards.index_cache import read_index


def places_of(shard_set: ShardSet, split: str, console: Console) -> Places:
    """Return the folders and the groups of a split's samples.

    A set stores the path of each source, and not its group, so only groups that a pattern names on
    the path are known again. A notice says where they are not.

    Args:
        shard_set: The shard set.
        split: A split of it.
        console: The console.

    Raises:
        ShardError: An index is missing or damaged.
    """
    names = _names(shard_set, split)
    folders = np.array([name.rpartition("/")[0] for name in names], object)
    group = data_config(shard_set.manifest, {"train": str(shard_set.location)}, {}).group
    if group is None:
        return Places(folders)
    try:
        binary = pa.chunked_array([pa.array([name.encode() for name in names], pa.binary())])
        groups = groups_by_pattern(binary, group).to_pylist()
    except UserError:
        console.notice(
            f"data.group={group} names no group on the paths that {shard_set.location} stores, as "
            "a listing's column does: groups are not told apart"
        )
        return Places(folders)
    return Places(folders, np.array([each.decode("utf-8", "replace") for each in groups], object))


def _names(shard_set: ShardSet, split: str) -> list[str]:
    """Return the path of each sample's source below the root of its split's source."""
    num_classes = len(shard_set.manifest.classes)
    found: list[str] = []
    for shard in shard_set.shards(split).to_pylist():
        index = read_index(shard_set.location, shard_set.names, ShardInfo(**shard), num_classes)
        found += [uri.partition("/")[2] for uri in index.source_uris.to_pylist()]
    return found
