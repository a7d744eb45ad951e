"""Decoded media to the tensors that a model takes, each array copied once."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

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
    check_array,
)
from pipeline.media.points_format import NUM_DIMS

Inputs = torch.Tensor | TableRows
BatchInputs = Inputs | dict[str, Inputs]
"""Of one modality, or of several by name."""
BatchMask = torch.Tensor | dict[str, torch.Tensor] | None


class Collator:
    """A batch of media of one format, filled row by row.

    Args:
        media: their format.
        size: rows; those that nothing is put into stay zero, and masked.
    """

    def __init__(self, media: MediaFormat, size: int) -> None:
        self.media = media
        self._lengths = np.zeros(size, np.int64)
        self._rows: Any = None
        match media:
            case ImageFormat():
                shape = (size, media.height, media.width, media.channels)
                self._rows = np.zeros(shape, np.uint8)
            case VideoFormat():
                self._rows = np.zeros((size, *media.shape), np.uint8)
            case AudioFormat():
                kind = np.int16 if media.mel is None else np.float32
                self._rows = np.zeros((size, *media.shape), kind)
            case PointsFormat():
                self._rows = np.zeros((size, media.num_points, NUM_DIMS), np.float32)
            case TextFormat():
                self._rows = np.full((size, media.max_length), PAD, np.int64)
            case TableFormat():
                self._rows = np.full((size, len(media.columns)), np.nan)

    def put(self, row: int, array: np.ndarray) -> None:
        """Copy a sample's array, such as a view of a shard's memory, into its row.

        Raises:
            ValueError: it is not what the format says.
        """
        check_array(array, self.media)
        match self.media:
            case TextFormat():
                np.add(array, NUM_SPECIAL, out=self._rows[row, : len(array)], dtype=np.int64)
            case AudioFormat() | PointsFormat():
                self._rows[row, : len(array)] = array
            case _:
                self._rows[row] = array
        self._lengths[row] = len(array)

    @property
    def lacks_rows(self) -> bool:
        """Whether there is a row that nothing was put into."""
        return not self._lengths.all()

    def row_mask(self) -> torch.Tensor | None:
        """Where images and films are, bool as the model takes it: rows that were put. Else None."""
        present = torch.from_numpy(self._lengths > 0)
        match self.media:
            case ImageFormat():
                return present[:, None, None].expand(-1, self.media.height, self.media.width)
            case VideoFormat():
                return present[:, None].expand(-1, self.media.num_frames)
        return None

    def finish(self) -> tuple[Inputs, torch.Tensor | None]:
        """The inputs and their mask, as :func:`collate` returns them."""
        match self.media:
            case ImageFormat() | VideoFormat():
                return torch.from_numpy(self._rows), None
            case TableFormat():
                numeric, categorical = np.split(self._rows, [len(self.media.numeric)], axis=1)
                missing = np.isnan(categorical)
                indices = np.where(missing, -1, categorical).astype(np.int64)
                return TableRows(torch.from_numpy(numeric.copy()), torch.from_numpy(indices)), None
            case TextFormat():
                self._rows = self._rows[:, : max(1, self._lengths.max(initial=0))]
        length = self._rows.shape[1]
        rows = torch.from_numpy(np.ascontiguousarray(self._rows))
        mask = torch.from_numpy(np.arange(length) < self._lengths[:, None])
        if isinstance(self.media, AudioFormat) and self.media.mel is not None:
            # A feature map of one column, whose channels are the bands.
            return standardise_frames(rows, mask).unsqueeze(2), mask.unsqueeze(2)
        return rows, mask


class JointCollator:
    """A batch of samples of several modalities, each of which a sample may lack.

    Args:
        formats: by modality.
        size: rows.
    """

    def __init__(self, formats: Mapping[str, MediaFormat], size: int) -> None:
        self._collators = {name: Collator(fmt, size) for name, fmt in formats.items()}

    def put(self, row: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Copy the arrays that a sample has into its row. Raises ValueError as `Collator.put`."""
        for name, array in arrays.items():
            self._collators[name].put(row, array)

    def finish(self) -> tuple[dict[str, Inputs], dict[str, torch.Tensor]]:
        """Inputs and masks by modality; what every row has and fills has no mask.

        Nor has the only modality's image or film: a row without it has nothing to be masked from.
        """
        inputs, masks = {}, {}
        for name, collator in self._collators.items():
            inputs[name], mask = collator.finish()
            if mask is None and collator.lacks_rows and len(self._collators) > 1:
                mask = collator.row_mask()
            if mask is not None:
                masks[name] = mask
        return inputs, masks


def collate(
    arrays: Iterable[np.ndarray | None], media: MediaFormat
) -> tuple[Inputs, torch.Tensor | None]:
    """Decoded media as a batch; None leaves a row that is masked throughout.

    Returns:
        The inputs and their bool mask, by modality:

        - images, uint8 ``[batch, height, width, channels]``, and None (None is all zero)
        - films, uint8 ``[batch, frames, height, width, channels]``, and None
        - sound, int16 ``[batch, samples]``, and ``[batch, samples]``; log-mel frames, float32
          ``[batch, frames, 1, num_mels]``, each sample's standardised as the model's own front end
          does, and ``[batch, frames, 1]``
        - points, float32 ``[batch, num_points, 3]``, and ``[batch, num_points]``
        - text, int64 ``[batch, longest]``: bytes plus 6 (DeepMind's byte vocabulary), padded with
          its PAD, and ``[batch, longest]``
        - tables, :class:`~perceiver_model.adapters.table.TableRows`: numbers, float64 with NaN
          where missing, and categories, int64 with -1 where missing; and None

    Raises:
        ValueError: an array has another shape than ``media`` says.
    """
    rows = list(arrays)
    collator = Collator(media, len(rows))
    for row, array in enumerate(rows):
        if array is not None:
            collator.put(row, array)
    return collator.finish()


def to_device(inputs: BatchInputs, mask: BatchMask, device: torch.device) -> tuple[Any, Any]:
    """Both on a device; without waiting, where they are pinned."""
    return tuple(_each(part, lambda t: t.to(device, non_blocking=True)) for part in (inputs, mask))


def pinned(inputs: BatchInputs, mask: BatchMask) -> tuple[Any, Any]:
    """Both in memory that a GPU reads directly."""
    return tuple(_each(part, lambda tensor: tensor.pin_memory()) for part in (inputs, mask))


def _each(part: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same structure of changed tensors."""
    if isinstance(part, dict):
        return {name: _each(inner, change) for name, inner in part.items()}
    if isinstance(part, TableRows):
        return TableRows(*map(change, part))
    return part if part is None else change(part)
