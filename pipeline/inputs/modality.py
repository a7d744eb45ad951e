"""How a model reads a modality: the base of the half of a modality that knows the models."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from perceiver_model.adapters.configs import MediaInput
from perceiver_model.families.classifier_config import AdapterConfig
from pipeline.media.format import MediaFormat
from pipeline.media.modality import Format
from pipeline.media.registered import load, modality, modality_of

if TYPE_CHECKING:
    import torch

    from perceiver_model.adapters.table import TableRows


class ModalityInputs(Generic[Format]):
    """How a model reads the arrays of a `pipeline.media.modality.Modality`.

    A subclass must define `tensors` and `input_config`. Configurations are read without torch, so
    subclasses import it within `tensors` and `mask_of_present` alone.
    """

    def padded_length(self, fmt: Format) -> int | None:
        """What the first axis of every array is filled up to; None for a batch's longest."""
        return None

    def full_length(self, fmt: Format) -> int | None:
        """As `padded_length`, where all batches must have one shape."""
        return self.padded_length(fmt)

    def blank_shape(self, fmt: Format) -> tuple[int, ...]:
        """The shape of a stored array in a batch in which no sample has the modality."""
        return modality_of(fmt).array_type(fmt)[1]

    def tensors(
        self, rows: torch.Tensor, lengths: torch.Tensor, fmt: Format
    ) -> tuple[torch.Tensor | TableRows, torch.Tensor | None]:
        """Stacked arrays as a model takes them, on the device where they are.

        Args:
            rows: arrays as `pipeline.media.check_array` says, one in each row; zeros follow
                an array that is shorter than the others.
            lengths: int64 `[batch]`, the length of each array's first axis; 0 where there is
                none.

        Returns:
            What the adapter reads, and a bool mask that is True where it is valid, or None.
        """
        raise NotImplementedError

    def mask_of_present(self, present: torch.Tensor, fmt: Format) -> torch.Tensor | None:
        """The mask of a batch in which samples lack the modality, where `tensors` gives none.

        Args:
            present: bool `[batch]`.

        Returns:
            A mask as the adapter takes it; None where a missing sample needs none.
        """
        return None

    def input_config(
        self, fmt: Format, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
    ) -> MediaInput:
        """The model's input.

        Args:
            pixel_mean, pixel_std: standardisation of images and films.

        Raises:
            ValueError: the standardisation has another number of channels.
        """
        raise NotImplementedError

    def adapter(self, fmt: Format, adapter: AdapterConfig) -> AdapterConfig:
        """The adapter that reads the stored arrays as `adapter` would read them raw.

        Raises:
            ValueError: shards hold other features than the adapter's.
        """
        return adapter

    def augment_fields(self, fmt: Format) -> tuple[str, ...]:
        """The fields of `training.augment` that change such media."""
        return ()

    def check_augment(self, augment: Any, fmt: Format) -> None:
        """Refuse values of `training.augment` that such media cannot take.

        Raises:
            ValueError: names the field, its value and what is allowed.
        """

    def stored_as(self, fmt: Format) -> str:
        """How shards hold the media, where errors must tell it: ` stored as mel`."""
        return ""


@cache
def inputs_named(name: str) -> ModalityInputs[Any]:
    """The inputs of the modality of a name."""
    found: ModalityInputs[Any] = load(modality(name).inputs)()
    return found


def inputs_of(fmt: MediaFormat) -> ModalityInputs[Any]:
    """The inputs of the modality of a format."""
    return inputs_named(fmt.modality)


def array_of_zeros(fmt: MediaFormat, size: int) -> np.ndarray:
    """Stored arrays of a batch in which no sample has the modality."""
    dtype, _ = modality_of(fmt).array_type(fmt)
    return np.zeros((size, *inputs_of(fmt).blank_shape(fmt)), dtype)


def check_equal(adapter: AdapterConfig, stored: Any, section: str, fields: str) -> None:
    """Refuse an adapter whose fields differ from those of features that shards hold.

    Args:
        stored: the features' own configuration.
        section: names it in the error.
        fields: names of fields that both have, parted by spaces.

    Raises:
        ValueError: names the first field that differs.
    """
    for field in fields.split():
        if getattr(stored, field) != getattr(adapter, field):
            raise ValueError(
                f"adapter.{field} is {getattr(adapter, field)}, but {section}.{field} is "
                f"{getattr(stored, field)}; make them equal"
            )
