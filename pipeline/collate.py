"""Decoded media to the tensors that a model takes, each array copied once."""

from collections.abc import Iterable
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

BatchInputs = torch.Tensor | TableRows


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

    def finish(self) -> tuple[BatchInputs, torch.Tensor | None]:
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


def collate(
    arrays: Iterable[np.ndarray | None], media: MediaFormat
) -> tuple[BatchInputs, torch.Tensor | None]:
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


def to_device(
    inputs: BatchInputs, mask: torch.Tensor | None, device: torch.device
) -> tuple[BatchInputs, torch.Tensor | None]:
    """Both on a device; without waiting, where they are pinned."""
    moved = mask if mask is None else mask.to(device, non_blocking=True)
    if isinstance(inputs, TableRows):
        return TableRows(*(part.to(device, non_blocking=True) for part in inputs)), moved
    return inputs.to(device, non_blocking=True), moved


def pinned(
    inputs: BatchInputs, mask: torch.Tensor | None
) -> tuple[BatchInputs, torch.Tensor | None]:
    """Both in memory that a GPU reads directly."""
    moved = mask if mask is None else mask.pin_memory()
    if isinstance(inputs, TableRows):
        return TableRows(*(part.pin_memory() for part in inputs)), moved
    return inputs.pin_memory(), moved
