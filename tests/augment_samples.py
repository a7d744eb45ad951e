"""Batches of every modality, and what `training.augment` makes of them."""

from pathlib import Path

import numpy as np
from modality_samples import FORMATS, make_config, raw_media

from pipeline.config.training import AugmentConfig
from pipeline.config.tree import Config
from pipeline.inputs.collate import collate
from pipeline.media import ImageFormat, MediaFormat, array_type, decode, media_to_dict
from pipeline.training.augmentation.batch import augment_batch

IMAGE = ImageFormat(height=12, width=10, channels=1)
KINDS: dict[str, MediaFormat] = {**FORMATS, "image": IMAGE}

ASKED = {
    "shift_pixels": 2.0,
    "rotate_degrees": 25.0,
    "scale": (0.7, 0.9),
    "flip": True,
    "crop_area": (0.3, 0.6),
    "jitter": 0.02,
    "drop_points": 0.5,
    "shift_seconds": 0.1,
    "gain_db": 6.0,
    "noise": 0.5,
    "mask_seconds": 0.1,
    "mask_bands": 3,
    "band_gain": 0.5,
    "mask_bytes": 0.5,
    "randaugment_layers": 4,
    "brightness": 0.5,
    "contrast": 0.5,
    "erase": 1.0,
}
"""A value for every field that changes something."""

MIXED = {"mixup": 0.2, "cutmix": 0.2}
"""The fields that mix samples (`test_augment_mixing`)."""

COLOURED = {"randaugment_magnitude": 9.0, "saturation": 0.9, "hue": 0.4}
"""Fields that need others, or images of 3 channels (`test_augment_colours`)."""

REPEATED = {"views": 2}
"""The field that repeats samples, which needs others (`test_augment_loop`)."""

PICTURES = {"shift_pixels", "rotate_degrees", "scale", "flip", "crop_area"}
TAKEN = {
    "image": PICTURES | {"randaugment_layers", "brightness", "contrast", "erase"},
    "video": PICTURES,
    "points": {"rotate_degrees", "scale", "flip", "jitter", "drop_points"},
    "sound": {"shift_seconds", "gain_db", "noise"},
    "mel": {"shift_seconds", "noise", "mask_seconds", "mask_bands", "band_gain"},
    "text": {"mask_bytes"},
    "table": set(),
}


def inputs_of(kind: str, count: int = 16, media: MediaFormat | None = None):
    """Inputs and mask of a batch of real media."""
    media = media or KINDS[kind]
    if kind in ("image", "video"):  # the sample films are of one grey
        generator, (_, shape) = np.random.default_rng(0), array_type(media)
        arrays = [generator.integers(0, 256, shape, np.uint8) for _ in range(count)]
    else:
        arrays = [decode(raw_media(kind, number), media) for number in range(count)]
    return collate(arrays, media)


def changed(kind: str, inputs, mask, asked: dict, media: MediaFormat | None = None, **share):
    where = {"seed": 3, "rank": 0, "global_batch": len(inputs)} | share
    formats = {kind: media or KINDS[kind]}
    return augment_batch(inputs, mask, formats, AugmentConfig(**asked), **where)


def config_of(kind: str, augment: dict) -> Config:
    if kind == "image":
        config = make_config("text", Path("/nowhere")).tree()
        config["data"]["text"], config["data"]["image"] = None, media_to_dict(IMAGE)
        del config["data"]["image"]["modality"]
        config["model"]["adapter"] = {"kind": "pixels"}
        config["training"]["augment"] = augment
        return Config.model_validate(config, strict=False)
    return make_config(kind, Path("/nowhere"), augment=augment)
