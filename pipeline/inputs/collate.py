"""Decoded media to the tensors that a model takes."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from perceiver_model.adapters.table import TableRows
from pipeline.inputs.modality import array_of_zeros, inputs_of
from pipeline.media import MediaFormat, check_array
from pipeline.media.registered import modality_of

Inputs = torch.Tensor | TableRows
BatchInputs = Inputs | dict[str, Inputs]
"""Of one modality, or of several by name."""
BatchMask = torch.Tensor | dict[str, torch.Tensor] | None


def padded_length(media: MediaFormat) -> int | None:
    """What the first axis of every array is filled up to; None for a batch's longest."""
    return inputs_of(media).padded_length(media)


def blank(media: MediaFormat, size: int) -> torch.Tensor:
    """A batch in which no sample has the modality, as `model_inputs` takes it."""
    return torch.from_numpy(array_of_zeros(media, size))


def model_inputs(
    rows: torch.Tensor, lengths: torch.Tensor, media: MediaFormat
) -> tuple[Inputs, torch.Tensor | None]:
    """Stacked media as a model takes them, on the device where they are.

    Args:
        rows: arrays as `pipeline.media.check_array` says, one in each row, the rest zero.
        lengths: int64 `[batch]`, the length of each array's first axis; 0 where there is none.
        media: their format.

    Returns:
        The inputs and their bool mask, as the modality's class in `pipeline.inputs` says; the
        mask is None of images, films and tables.
    """
    return inputs_of(media).tensors(rows, lengths, media)


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
            present = lengths[name] > 0
            mask = None if present.all() else inputs_of(media).mask_of_present(present, media)
        if mask is not None:
            masks[name] = mask
    return inputs, masks


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
    read: np.ndarray = modality_of(media).model_array(array, media)
    return read
