"""The Fourier position tables of a study's sets."""

import numpy as np

from pipeline.config.tree import Config
from pipeline.preprocess.identity import needed_positions
from pipeline.preprocess.position_tables import position_table_of
from pipeline.studies.image_data import PERMUTED, UNPLACED, pixel_order
from shards import ShardSet
from shards.added_positions import add_positions


def add_tables(shard_set: ShardSet, name: str, config: Config) -> None:
    """Add the tables that a model needs to a set, if they are missing.

    Args:
        shard_set: The set.
        name: The name of the set. Of `permuted`, the tables are permuted like the pixels. Of
            `unplaced`, they are all zeros.
        config: The configuration of the model.

    Raises:
        ShardError: The set cannot be written.
    """
    tables = {}
    for spec in needed_positions(config):
        if shard_set.holds(spec):
            continue
        _, table = position_table_of(spec)
        if name == PERMUTED:
            height, width = spec.shape
            table = np.ascontiguousarray(table[pixel_order(height, width)])
        tables[spec] = np.zeros_like(table) if name == UNPLACED else table
    if tables:
        add_positions(shard_set.location, tables)
