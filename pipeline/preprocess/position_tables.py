"""The Fourier position tables of a shard set: computed once, and added to a finished set."""

from collections.abc import Iterable

import numpy as np

from perceiver_model.fourier import position_table
from pipeline.runs.console import Console
from shards import PositionSpec, ShardSet
from shards.added_positions import add_positions


def position_table_of(spec: PositionSpec) -> tuple[PositionSpec, np.ndarray]:
    """Return a specification with its table, float32 [tokens, channels]."""
    return spec, np.asarray(position_table(spec.shape, spec.num_bands, spec.max_resolution))


def add_missing_tables(shard_set: ShardSet, specs: Iterable[PositionSpec], console: Console) -> int:
    """Add the position tables that a set does not hold. No shard is read or changed.

    Args:
        shard_set: The set.
        specs: The specifications of the tables.
        console: The console, which is told what was added.

    Returns:
        The number of tables that were added.

    Raises:
        ShardError: The set cannot be written.
    """
    missing = [each for each in dict.fromkeys(specs) if not shard_set.holds(each)]
    if missing:
        add_positions(shard_set.location, dict(map(position_table_of, missing)))
        console.notice(f"{shard_set.location}: got position tables: {', '.join(map(str, missing))}")
    return len(missing)
