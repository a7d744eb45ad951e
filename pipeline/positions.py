"""The Fourier position table between a shard set, which holds it, and the model that needs it."""

import torch

from perceiver_model.classifier_config import ClassifierConfig
from perceiver_model.config import FourierConfig
from shards import PositionSpec, ShardSet


def position_spec(config: ClassifierConfig) -> PositionSpec | None:
    """What names the Fourier position table that a model needs; None if it needs none."""
    if not isinstance(config.positions, FourierConfig):
        return None
    return PositionSpec(
        shape=config.token_grid,
        num_bands=config.positions.num_bands,
        max_resolution=config.max_resolution,
    )


def load_positions(shard_set: ShardSet, config: ClassifierConfig) -> torch.Tensor | None:
    """The model's table, float32 ``[tokens, channels]``; None if it needs none.

    Raises:
        ShardError: the set was made with other Fourier features.
    """
    spec = position_spec(config)
    return None if spec is None else torch.from_numpy(shard_set.position_table(spec).copy())
