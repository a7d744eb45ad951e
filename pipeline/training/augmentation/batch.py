"""Augment every modality of a training batch with its own function."""

from collections.abc import Mapping

import torch

from pipeline.config.training import AugmentConfig
from pipeline.inputs.collate import BatchInputs, BatchMask, Inputs
from pipeline.media.format import MediaFormat
from pipeline.media.registered import load, modality_of
from pipeline.training.augmentation.draws import step_seed


def augment_batch(
    inputs: BatchInputs,
    mask: BatchMask,
    formats: Mapping[str, MediaFormat],
    config: AugmentConfig,
    *,
    seed: int,
    rank: int,
    global_batch: int,
) -> tuple[BatchInputs, BatchMask]:
    """Augment the inputs and masks of `joint_inputs` as the configuration says.

    The modalities of a sample change independently of each other.

    Args:
        inputs: The inputs, from `joint_inputs`.
        mask: Their mask, from `joint_inputs`.
        formats: The formats, by modality.
        config: The configuration of the augmentation.
        seed: The seed of this step, equal on all ranks.
        rank: The rank, which says which part of the global batch this is.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        The inputs and the mask, which may be the given ones.
    """
    share = {"rank": rank, "global_batch": global_batch}
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
    global_batch: int,
) -> tuple[Inputs, torch.Tensor | None]:
    """Augment the inputs of one modality, and their mask, with the function that it names.

    Args:
        inputs: The inputs, from `pipeline.inputs.collate.model_inputs`.
        mask: Their mask, from the same function.
        config: The configuration of the augmentation.
        media: The format of the media.
        seed: The seed of this step and modality, equal on all ranks.
        rank: The rank, which says which part of the global batch this is.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        The inputs and the mask, which may be the given ones.
    """
    path = modality_of(media).augmentation
    if path is None:
        return inputs, mask
    changed: tuple[Inputs, torch.Tensor | None] = load(path)(
        inputs, mask, config, media, seed=seed, rank=rank, global_batch=global_batch
    )
    return changed
