"""Load the Fourier position tables that a shard set holds for the model that reads them."""

import torch

from perceiver_model.adapters.multimodal_config import MultimodalInput
from perceiver_model.config import FourierConfig
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.tokens_config import TokensConfig
from shards import PositionSpec, ShardSet


def position_spec(config: TokensConfig) -> PositionSpec | None:
    """Return the specification of one input's Fourier position table; None if it needs no table."""
    positions = getattr(config, "positions", None)  # not every family has any
    if not isinstance(positions, FourierConfig) or config.adapter.is_successive:
        return None  # a backbone's maps are known once it has run, so the model makes their tables
    return PositionSpec(
        shape=config.token_grid,
        num_bands=positions.num_bands,
        max_resolution=config.max_resolution,
    )


def position_specs(config: ClassifierConfig) -> tuple[PositionSpec, ...]:
    """Return the specifications of the tables of all of a model's inputs."""
    parts: list[TokensConfig] = [config]
    if isinstance(config.input, MultimodalInput):
        parts += config.input.modalities.values()
    specs = {spec.digest: spec for part in parts if (spec := position_spec(part)) is not None}
    return tuple(specs.values())


def load_positions(shard_set: ShardSet, config: TokensConfig) -> torch.Tensor | None:
    """Return the position table for a model of one input; None if it needs no table.

    Args:
        shard_set: The shard set, which holds the table.
        config: The model's configuration.

    Returns:
        A tensor, float32 `[tokens, channels]`.

    Raises:
        ShardError: The set was made with other Fourier features.
    """
    spec = position_spec(config)
    return None if spec is None else torch.from_numpy(shard_set.position_table(spec).copy())
