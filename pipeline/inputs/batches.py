"""Batches of a shard set's media as a model takes them."""

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
"""The field of a batch that holds the targets that are arrays."""


@dataclass(frozen=True)
class MemberDecoder:
    """Makes a sample's arrays by modality; a sample may lack some of several.

    Attributes:
        formats: by modality.
        has_target: whether a sample's target is an array, which it must have, too.
    """

    formats: Mapping[str, MediaFormat]
    has_target: bool = False

    def __call__(self, sample: RawSample) -> dict[str, np.ndarray]:
        """The arrays.

        Raises:
            MediaError, ShardError: one is damaged.
            ValueError: it has none, or one is not what its format says.
        """
        members = sample.members
        arrays = {}
        for name, fmt in self.formats.items():
            if (member := model_member(fmt)) in members:
                arrays[name] = decode_member(members[member], fmt)
                check_array(arrays[name], fmt)
        if not arrays:
            wanted = " or ".join(map(model_member, self.formats.values()))
            raise ValueError(f"has {', '.join(members)}, and no {wanted}")
        if self.has_target:
            arrays[TARGET] = decode_target(sample)
        return arrays


def decode_target(sample: RawSample) -> np.ndarray:
    """A sample's target, as `target_members` wrote it.

    Raises:
        ShardError: it is damaged.
        ValueError: it has none.
    """
    if TARGET_MEMBER not in sample.members:
        raise ValueError(f"has {', '.join(sample.members)}, and no {TARGET_MEMBER}")
    return decode_npy(sample.members[TARGET_MEMBER])


def target_of(
    batch: ShardBatch, kind: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch's targets and the lengths of their first axes, on a device.

    Args:
        batch: of `media_loader`, which was given the same kind.
        kind: `data.target.kind`.

    Returns:
        Of kinds `class` and `none` int64 `[batch]`, -1 where there is no class; of the others
        as the shards hold them, `[batch, …]`. The lengths are int64 `[batch]`.
    """
    if not has_array(kind):
        lengths = torch.ones_like(batch.targets)
        return batch.targets.to(device), lengths.to(device)
    return batch.fields[TARGET].to(device), batch.lengths[TARGET].to(device)


def has_array(kind: str) -> bool:
    """Whether targets of a kind are arrays in the shards."""
    return kind not in ("class", "none")


def media_loader(
    reader: ShardReader,
    formats: Mapping[str, MediaFormat],
    *,
    target: str = "class",
    one_length: bool = False,
    **options: Any,
) -> ShardLoader:
    """A loader of a split's media, which names samples that cannot be read and goes on.

    Args:
        formats: by modality.
        target: `data.target.kind`.
        one_length: fill texts up to their format's length, and not a batch's longest.
        options: of `ShardLoader`.
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
    """The inputs of a `media_loader`'s batch and their mask, on a device.

    They cross to it as they are stored, and become what the model takes there.
    """
    size = len(batch.weights)
    absent = torch.zeros(size, dtype=torch.int64)
    rows, lengths = {}, {}
    for name, media in formats.items():
        stored = batch.fields[name] if name in batch.fields else blank(media, size)
        rows[name] = stored.to(device, non_blocking=True)
        lengths[name] = batch.lengths.get(name, absent).to(device, non_blocking=True)
    return joint_inputs(rows, lengths, formats)
