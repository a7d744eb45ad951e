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


def small_images(epochs: int) -> dict[str, Any]:
    """Return the dotted fields of a small training on the pixels of digits.

    Args:
        epochs: The number of epochs.
    """
    return {
        **SMALL,
        "data.image.height": 16,
        "data.image.width": 16,
        "model.adapter": {"kind": "pixels"},
        "model.encoder.num_blocks": 2,
        "model.encoder.num_cross_attends": 2,
        "training.epochs": epochs,
    }
