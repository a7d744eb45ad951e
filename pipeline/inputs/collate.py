"""Collate decoded media into the tensors that a model takes."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from perceiver_model.adapters.table import TableRows
from pipeline.inputs.modality import array_of_zeros, inputs_of
from pipeline.media import MediaFormat, check_array
from pipeline.media.registered import modality_of

Inputs = torch.Tensor | TableRows
BatchInputs = Inputs | dict[str, Inputs]
"""The inputs of a single modality, or of several modalities by name."""
BatchMask = torch.Tensor | dict[str, torch.Tensor] | None


def padded_length(media: MediaFormat) -> int | None:
    """Return the length that every array's first axis is padded to.

    None means the length of the longest array in a batch.
    """
    return inputs_of(media).padded_length(media)


def blank(media: MediaFormat, size: int) -> torch.Tensor:
    """Return a batch in which no sample has the modality, as `model_inputs` takes it."""
    return torch.from_numpy(array_of_zeros(media, size))


def model_inputs(
    rows: torch.Tensor, lengths: torch.Tensor, media: MediaFormat
) -> tuple[Inputs, torch.Tensor | None]:
    """Convert stacked media to what a model takes, on the device where they are.

    Args:
        rows: One array in each row, padded with zeros. `pipeline.media.check_array` describes the
            arrays.
        lengths: The length of each array's first axis, int64 `[batch]`; 0 where a sample has no
            array.
        media: The format of the arrays.

    Returns:
        The inputs and their bool mask, as the modality's class in `pipeline.inputs` describes them.
        The mask is None for images, films and tables.
    """
    return inputs_of(media).tensors(rows, lengths, media)


def joint_inputs(
    rows: Mapping[str, torch.Tensor],
    lengths: Mapping[str, torch.Tensor],
    formats: Mapping[str, MediaFormat],
) -> tuple[BatchInputs, BatchMask]:
    """Return inputs and masks by modality, or those of a single modality without a dictionary.

    With several modalities, images and films get a mask if a sample lacks them. With a single
    modality they get none: a row without it would have nothing left to attend to.

    Args:
        rows: The stacked arrays by modality, as `model_inputs` takes them.
        lengths: The lengths by modality, as `model_inputs` takes them.
        formats: The formats, by modality.
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
    """Collate decoded media into a batch on a device.

    Args:
        arrays: The decoded arrays. None gives a row that is masked completely.
        media: The format of the arrays.
        device: The device; None means the CPU.

    Returns:
        The inputs and the mask, as `model_inputs` returns them.

    Raises:
        ValueError: An array does not have the shape that `media` gives.
    """
    rows, lengths = _stacked(arrays, media)
    return model_inputs(rows.to(device), lengths.to(device), media)


def collate_samples(
    samples: Sequence[Mapping[str, np.ndarray]],
    formats: Mapping[str, MediaFormat],
    device: torch.device | None = None,
) -> tuple[BatchInputs, BatchMask]:
    """Collate samples of one or several modalities into a batch on a device.

    Args:
        samples: The decoded arrays of each sample, by modality. A sample may lack some.
        formats: The formats, by modality.
        device: The device; None means the CPU.

    Returns:
        The inputs and masks, as `joint_inputs` returns them.

    Raises:
        ValueError: An array does not have the shape that its format gives.
    """
    rows, lengths = {}, {}
    for name, media in formats.items():
        stacked, length = _stacked([sample.get(name) for sample in samples], media)
        rows[name], lengths[name] = stacked.to(device), length.to(device)
    return joint_inputs(rows, lengths, formats)


def _stacked(
    arrays: Sequence[np.ndarray | None], media: MediaFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return arrays in the rows of one, padded with zeros, and their lengths, int64."""
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
    return torch.from_numpy(rows), lengths


def _read(array: np.ndarray, media: MediaFormat) -> np.ndarray:
    """Return what a model reads of a decoded array: the array that a shard would hold."""
    check_array(array, media)
    read: np.ndarray = modality_of(media).model_array(array, media)
    return read
