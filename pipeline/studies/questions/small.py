"""What the small trainings of all studies of digits have in common."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

SMALL: Mapping[str, Any] = MappingProxyType(
    {
        "data.validation": None,
        "data.samples_per_shard": 500,
        "model.positions": {"num_bands": 8},
        "model.encoder.num_latents": 32,
        "model.encoder.latent_dim": 64,
        "model.encoder.num_self_attends": 1,
        "model.encoder.num_cross_heads": 2,
        "model.encoder.cross_channels": 32,
        "training.augment": {},
        "training.label_smoothing": 0.0,
        "training.learning_rate": 4e-3,
        "training.zero_stage": "auto",
    }
)
"""The dotted fields of the configuration that they change."""
