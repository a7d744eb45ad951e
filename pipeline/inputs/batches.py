"""Batches of a shard set's media, as a model takes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.inputs.collate import BatchInputs, BatchMask, blank, joint_inputs
from pipeline.inputs.modality import inputs_of
from pipeline.media import MediaFormat, check_array, decode_member, model_member
from pipeline.media.targets import TARGET_MEMBER
from shards import RawSample, ShardReader
from shards.loader import ShardBatch, ShardLoader
from shards.npy import decode_npy

TARGET = "target"
"""The name of a batch's field that holds the targets that are arrays."""


@dataclass(frozen=True)
class MemberDecoder:
    """Decode a sample's arrays, by modality. With several modalities, a sample may lack some.

    Attributes:
        formats: The formats, by modality.
        has_target: Whether the targets are arrays. Then every sample must have one.
    """

    formats: Mapping[str, MediaFormat]
    has_target: bool = False

    def __call__(self, sample: RawSample) -> dict[str, np.ndarray]:
        """Return the arrays of a sample, by modality, and its target under `TARGET`.

        Raises:
            MediaError: A member is damaged.
            ShardError: The target is damaged.
            ValueError: The sample has none of the members, lacks its target, or holds an array that
                does not fit its format.
        """
        members = sample.members
        arrays = {}
        for name, fmt in self.formats.items():
            if (member := model_member(fmt)) in members:
                arrays[name] = decode_member(members[member], fmt)
                check_array(arrays[name], fmt)
        if not arrays:
            expected = " or ".join(map(model_member, self.formats.values()))
            raise ValueError(f"has {', '.join(members)}, and no {expected}")
        if self.has_target:
            arrays[TARGET] = decode_target(sample)
        return arrays


def decode_target(sample: RawSample) -> np.ndarray:
    """Return a sample's target, as `target_members` wrote it.

    Raises:
        ShardError: The target is damaged.
        ValueError: The sample has no target.
    """
    if TARGET_MEMBER not in sample.members:
        raise ValueError(f"has {', '.join(sample.members)}, and no {TARGET_MEMBER}")
    return decode_npy(sample.members[TARGET_MEMBER])


def target_of(
    batch: ShardBatch, kind: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch's targets and the lengths of their first axes, on a device.

    Args:
        batch: A batch from `media_loader`, which was given the same kind.
        kind: The value of `data.target.kind`.
        device: The device to move the targets to.

    Returns:
        For the kinds `class` and `none`, int64 `[batch]`, with -1 where there is no class. For the
        other kinds, `[batch, …]` in the dtype of the shards. The lengths are int64 `[batch]`.
    """
    if not has_array(kind):
        targets = batch.targets.to(device, non_blocking=True)
        return targets, torch.ones_like(targets)
    targets, lengths = batch.fields[TARGET], batch.lengths[TARGET]
    return targets.to(device, non_blocking=True), lengths.to(device, non_blocking=True)


def has_array(kind: str) -> bool:
    """Return whether the shards hold targets of this kind as arrays."""
    return kind not in ("class", "none")


def media_loader(
    reader: ShardReader,
    formats: Mapping[str, MediaFormat],
    *,
    target: str = "class",
    one_length: bool = False,
    **options: Any,
) -> ShardLoader:
    """Return a loader of a split's media. It reports samples that cannot be read and continues.

    Args:
        reader: The reader of the split.
        formats: The formats, by modality.
        target: The value of `data.target.kind`.
        one_length: Whether to pad texts to their format's full length, so that all batches have
            one shape. Otherwise texts are padded to the longest of their batch.
        **options: Further options of `ShardLoader`.
    """
    lengths: dict[str, int | None] = {}
    for name, media in formats.items():
        inputs = inputs_of(media)
        lengths[name] = inputs.full_length(media) if one_length else inputs.padded_length(media)
    return ShardLoader(
        reader,
        decode=MemberDecoder(formats, has_array(target)),
        pad_to={name: length for name, length in lengths.items() if length is not None},
        skip_bad=True,
        **options,
    )


def inputs_on(
    batch: ShardBatch, formats: Mapping[str, MediaFormat], device: torch.device
) -> tuple[BatchInputs, BatchMask]:
    """Return the inputs of a batch from `media_loader` and their mask, on a device.

    The arrays are moved as they are stored. They are converted to the model's inputs on the device.

    Args:
        batch: The batch.
        formats: The formats, by modality.
        device: The device.

    Returns:
        The inputs and masks, as `joint_inputs` returns them.
    """
    size = len(batch.weights)
    absent = torch.zeros(size, dtype=torch.int64)
    rows, lengths = {}, {}
    for name, media in formats.items():
        stored = batch.fields[name] if name in batch.fields else blank(media, size)
        rows[name] = stored.to(device, non_blocking=True)
        lengths[name] = batch.lengths.get(name, absent).to(device, non_blocking=True)
    return joint_inputs(rows, lengths, formats)
