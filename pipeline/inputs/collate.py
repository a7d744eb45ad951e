"""Decoded media to the tensors that a model takes."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from perceiver_model.adapters.mel import standardise_frames
from perceiver_model.adapters.table import TableRows
from perceiver_model.adapters.text import NUM_SPECIAL, PAD
from pipeline.media import (
    AudioFormat,
    ImageFormat,
    MediaFormat,
    PointsFormat,
    TableFormat,
    TextFormat,
    VideoFormat,
    array_type,
    check_array,
)
from pipeline.media.points.format import NUM_DIMS
from pipeline.media.points.fourier import point_features

Inputs = torch.Tensor | TableRows
BatchInputs = Inputs | dict[str, Inputs]
"""Of one modality, or of several by name."""
BatchMask = torch.Tensor | dict[str, torch.Tensor] | None


def padded_length(media: MediaFormat) -> int | None:
    """What the first axis of every array is filled up to; None for a batch's longest."""
    match media:
        case AudioFormat():
            return media.shape[0]
        case PointsFormat():
            return media.num_points
    return None


def blank(media: MediaFormat, size: int) -> torch.Tensor:
    """A batch in which no sample has the modality, as `model_inputs` takes it."""
    dtype, shape = array_type(media)
    if isinstance(media, TextFormat):
        shape = (1,)
    return torch.from_numpy(np.zeros((size, *shape), dtype))


def model_inputs(
    rows: torch.Tensor, lengths: torch.Tensor, media: MediaFormat
) -> tuple[Inputs, torch.Tensor | None]:
    """Stacked media as a model takes them, on the device where they are.

    Args:
        rows: arrays as `pipeline.media.check_array` says, one in each row, the rest zero.
        lengths: int64 `[batch]`, the length of each array's first axis; 0 where there is none.
        media: their format.

    Returns:
        The inputs and their bool mask, by modality:

        - images, uint8 `[batch, height, width, channels]`, and None
        - films, uint8 `[batch, frames, height, width, channels]`, and None
        - sound, int16 `[batch, samples]`, and `[batch, samples]`; log-mel frames, float32
          `[batch, frames, 1, num_mels]`, each sample's standardised as the model's own front end
          does, and `[batch, frames, 1]`
        - points, float32 `[batch, num_points, 3]`, or their Fourier features where the format
          has them stored, `[batch, num_points, channels]`; and `[batch, num_points]`
        - text, int64 `[batch, longest]`: bytes plus 6 (DeepMind's byte vocabulary), padded with
          its PAD, and `[batch, longest]`
        - tables, `TableRows`: numbers, float64 with NaN
          where missing, and categories, int64 with -1 where missing; and None
    """
    match media:
        case ImageFormat() | VideoFormat():
            return rows, None
        case TableFormat():
            rows = rows.masked_fill(lengths[:, None] == 0, torch.nan)
            numeric, categorical = rows.split([len(media.numeric), len(media.categorical)], dim=1)
            return TableRows(numeric, categorical.nan_to_num(nan=-1.0).long()), None
    mask = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
    match media:
        case TextFormat():
            return (rows.long() + NUM_SPECIAL).masked_fill(~mask, PAD), mask
        case PointsFormat():
            return rows.float(), mask
        case AudioFormat() if media.mel is not None:
            # A feature map of one column, whose channels are the bands.
            return standardise_frames(rows.float(), mask).unsqueeze(2), mask.unsqueeze(2)
    return rows, mask


def joint_inputs(
    rows: Mapping[str, torch.Tensor],
    lengths: Mapping[str, torch.Tensor],
    formats: Mapping[str, MediaFormat],
) -> tuple[BatchInputs, BatchMask]:
    """Inputs and masks by modality; of a single modality, these alone.

    Images and films of several modalities have a mask where a sample lacks them. A single
    modality's have none: a row without it has nothing to be masked from.

    Args:
        rows, lengths: by modality, as `model_inputs` takes them.
        formats: by modality.
    """
    inputs: dict[str, Inputs] = {}
    masks: dict[str, torch.Tensor] = {}
    for name, media in formats.items():
        inputs[name], mask = model_inputs(rows[name], lengths[name], media)
        if len(formats) == 1:
            return inputs[name], mask
        if mask is None:
            mask = _presence(lengths[name] > 0, media)
        if mask is not None:
            masks[name] = mask
    return inputs, masks


def _presence(present: torch.Tensor, media: MediaFormat) -> torch.Tensor | None:
    """Which rows have an image or a film, as the model takes it; None where all do."""
    if present.all():
        return None
    match media:
        case ImageFormat():
            return present[:, None, None].expand(-1, media.height, media.width)
        case VideoFormat():
            return present[:, None].expand(-1, media.num_frames)
    return None


def collate(
    arrays: Sequence[np.ndarray | None], media: MediaFormat, device: torch.device | None = None
) -> tuple[Inputs, torch.Tensor | None]:
    """Decoded media as a batch on a device; None leaves a row that is masked throughout.

    Returns:
        As `model_inputs`.

    Raises:
        ValueError: an array has another shape than `media` says.
    """
    read = [None if array is None else _read(array, media) for array in arrays]
    lengths = torch.tensor([0 if array is None else len(array) for array in read])
    shapes = [array.shape[1:] for array in read if array is not None]
    rows = blank(media, len(read)).numpy()
    if shapes:
        length = padded_length(media) or int(lengths.max())
        rows = np.zeros((len(read), length, *shapes[0]), rows.dtype)
    for row, array in zip(rows, read, strict=True):
        if array is not None:
            row[: len(array)] = array
    return model_inputs(torch.from_numpy(rows).to(device), lengths.to(device), media)


def _read(array: np.ndarray, media: MediaFormat) -> np.ndarray:
    """What a model reads of a decoded array: what a shard would hold for it."""
    check_array(array, media)
    if isinstance(media, PointsFormat) and media.fourier and array.shape[1] == NUM_DIMS:
        return point_features(array, media)
    return array
