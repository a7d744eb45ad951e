"""Everything that `training.augment` does to the samples of a micro-batch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from perceiver_model.adapters.table import TableRows
from pipeline.config.training import AugmentConfig
from pipeline.media.format import MediaFormat
from pipeline.training.augmentation.batch import augment_batch
from pipeline.training.augmentation.images import augment_masks
from pipeline.training.augmentation.mixing import mix_batch
from pipeline.training.objectives.base import Batch


def augment_samples(
    batch: Batch,
    config: AugmentConfig,
    formats: Mapping[str, MediaFormat],
    *,
    has_masks: bool,
    seed: int,
    rank: int,
    global_batch: int,
) -> Batch:
    """Repeat the samples of a batch for several views, change them, and mix them.

    Args:
        batch: The samples of this rank.
        config: The configuration of the augmentation.
        formats: The formats of the inputs, by modality.
        has_masks: Whether the targets are masks of the images, which move with them.
        seed: The seed of this step, equal on all ranks.
        rank: The rank.
        global_batch: The number of rows of all ranks together, without padding.
    """
    share = {"seed": seed, "rank": rank, "global_batch": config.views * global_batch}
    batch = repeat_samples(batch, config.views)
    inputs, mask = augment_batch(batch.inputs, batch.mask, formats, config, **share)
    targets = augment_masks(batch.targets, config, **share) if has_masks else batch.targets
    return mix_batch(replace(batch, inputs=inputs, mask=mask, targets=targets), config, **share)


def repeat_samples(batch: Batch, views: int) -> Batch:
    """Return a batch with each sample `views` times, one after the other.

    So view v of the sample with the global index i has the global index `views * i + v` in the
    augmented batch, on any number of ranks.
    """
    if views == 1:
        return batch
    names = ("inputs", "mask", "targets", "target_lengths", "weights", "numbers")
    repeated = {name: _repeated(getattr(batch, name), views) for name in names}
    return replace(batch, **repeated, cache={})


def _repeated(values: Any, views: int) -> Any:
    """Repeat each row of a tensor, of a table's columns, or of each modality."""
    if values is None:
        return None
    if isinstance(values, dict):
        return {name: _repeated(part, views) for name, part in values.items()}
    if isinstance(values, TableRows):
        return TableRows(*(_repeated(part, views) for part in values))
    assert isinstance(values, torch.Tensor)
    return values.repeat_interleave(views, dim=0)
