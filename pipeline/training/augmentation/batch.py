"""Every modality of a training batch changed at random by what reads it."""

from collections.abc import Mapping

import torch

from pipeline.config.training import AugmentConfig
from pipeline.inputs.collate import BatchInputs, BatchMask, Inputs
from pipeline.media import AudioFormat, ImageFormat, MediaFormat, PointsFormat, VideoFormat
from pipeline.training.augmentation.images import (
    augment_audio,
    augment_films,
    augment_images,
    step_seed,
)
from pipeline.training.augmentation.mel import augment_mel
from pipeline.training.augmentation.points import augment_points


def augment_batch(
    inputs: BatchInputs,
    mask: BatchMask,
    formats: Mapping[str, MediaFormat],
    config: AugmentConfig,
    *,
    seed: int,
    rank: int,
    world_size: int,
) -> tuple[BatchInputs, BatchMask]:
    """Change the inputs and masks of `joint_inputs` as the configuration asks.

    Several modalities of a sample change independently of each other.

    Args:
        formats: by modality.
        seed: of this step; equal on all ranks.
        rank, world_size: which part of the global batch this is.
    """
    share = {"rank": rank, "world_size": world_size}
    if not isinstance(inputs, dict):
        assert not isinstance(mask, dict)
        (media,) = formats.values()
        return _augment(inputs, mask, media, config, seed=seed, **share)
    masks = mask if isinstance(mask, dict) else {}
    changed, moved = {}, dict(masks)
    for name, media in formats.items():
        own = step_seed(seed, *name.encode())
        changed[name], kept = _augment(
            inputs[name], masks.get(name), media, config, seed=own, **share
        )
        if kept is not None:
            moved[name] = kept
    return changed, moved if isinstance(mask, dict) else mask


def _augment(
    inputs: Inputs,
    mask: torch.Tensor | None,
    media: MediaFormat,
    config: AugmentConfig,
    **share: int,
) -> tuple[Inputs, torch.Tensor | None]:
    if not isinstance(inputs, torch.Tensor):
        return inputs, mask
    match media:
        case ImageFormat():
            return augment_images(inputs, config, **share), mask
        case VideoFormat():
            return augment_films(inputs, config, **share), mask
    if mask is None:
        return inputs, mask
    match media:
        case PointsFormat():
            return augment_points(inputs, mask, config, media, **share), mask
        case AudioFormat() if media.mel is not None:
            return augment_mel(inputs, mask, config, media, **share)
        case AudioFormat():
            rate = media.sample_rate
            return augment_audio(inputs, mask, config, sample_rate=rate, **share)
    return inputs, mask
