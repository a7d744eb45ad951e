"""What the trainings of all studies of digits, and of points, have in common."""

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


def cloud_values(num_points: int, num_bands: int, max_resolution: float) -> dict[str, Any]:
    """Return the dotted fields that make a training on images one on clouds of points.

    Args:
        num_points: The most points of a cloud.
        num_bands: The frequencies of each coordinate.
        max_resolution: The resolution of the coordinates; half of it is the highest frequency.
    """
    return {
        "data.image": None,
        "data.points": {"num_points": num_points},
        "model.adapter": {
            "kind": "points",
            "num_bands": num_bands,
            "max_resolution": max_resolution,
        },
        "model.positions": {},
    }


SMALL_CLOUDS = cloud_values(128, 8, 16)
"""The dotted fields for the ink of digits."""
LARGE_CLOUDS = {
    **cloud_values(2048, 64, 2240),
    "model.encoder.num_blocks": 2,
    "model.encoder.num_cross_attends": 2,
    "training.batch_size": 512,
}
"""The dotted fields for meshes, with the paper's model for ModelNet40 (section 4.3)."""

LARGE_IMAGES: Mapping[str, Any] = MappingProxyType(
    {
        "data.validation": None,
        "training.augment": {},
        "training.label_smoothing": 0.0,
        "training.gradient_accumulation_steps": 16,
    }
)
"""The dotted fields that every study of a person's images changes at the full scale."""
