"""Every modality of a training batch changed at random by what reads it."""

from collections.abc import Mapping

import torch

from pipeline.config.training import AugmentConfig
from pipeline.inputs.collate import BatchInputs, BatchMask, Inputs
from pipeline.media.format import MediaFormat
from pipeline.media.registered import load, modality_of
from pipeline.training.augmentation.images import step_seed


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
        return change(inputs, mask, config, media, seed=seed, **share)
    masks = mask if isinstance(mask, dict) else {}
    changed, moved = {}, dict(masks)
    for name, media in formats.items():
        own = step_seed(seed, *name.encode())
        changed[name], kept = change(
            inputs[name], masks.get(name), config, media, seed=own, **share
        )
        if kept is not None:
            moved[name] = kept
    return changed, moved if isinstance(mask, dict) else mask


def change(
    inputs: Inputs,
    mask: torch.Tensor | None,
    config: AugmentConfig,
    media: MediaFormat,
    *,
    seed: int,
    rank: int,
    world_size: int,
) -> tuple[Inputs, torch.Tensor | None]:
    """Change the inputs of one modality, and their mask, by the function that it names.

    Args:
        inputs, mask: as :func:`pipeline.inputs.collate.model_inputs` gives them.
        media: their format.
        seed: of this step and modality; equal on all ranks.
        rank, world_size: which part of the global batch this is.

    Returns:
        The inputs and the mask, which may be those that were given.
    """
    path = modality_of(media).augmentation
    if path is None:
        return inputs, mask
    changed: tuple[Inputs, torch.Tensor | None] = load(path)(
        inputs, mask, config, media, seed=seed, rank=rank, world_size=world_size
    )
    return changed
