"""How a model reads a modality: the base class for the inputs of each modality."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from perceiver_model.adapters.configs import MediaInput
from perceiver_model.families.classifier_config import AdapterConfig
from pipeline.inputs.attention_view import View, no_view
from pipeline.media.format import MediaFormat
from pipeline.media.modality import Format
from pipeline.media.registered import load, modality, modality_of

if TYPE_CHECKING:
    import torch

    from perceiver_model.adapters.table import TableRows

MIX_FIELDS = ("mixup", "cutmix")
"""The fields of `training.augment` that mix samples."""


class ModalityInputs(Generic[Format]):
    """How a model reads the arrays of a `pipeline.media.modality.Modality`.

    A subclass must define `tensors` and `input_config`. Configurations are read without torch, so a
    subclass must import torch only within `tensors` and `mask_of_present`.
    """

    def padded_length(self, fmt: Format) -> int | None:
        """Return the length that every array's first axis is padded to.

        None means the length of the longest array in a batch.
        """
        return None

    def full_length(self, fmt: Format) -> int | None:
        """Return the same as `padded_length`, for batches that must all have one shape."""
        return self.padded_length(fmt)

    def blank_shape(self, fmt: Format) -> tuple[int, ...]:
        """Return the shape of one sample's stored array in a batch where none has the modality."""
        return modality_of(fmt).array_type(fmt)[1]

    def tensors(
        self, rows: torch.Tensor, lengths: torch.Tensor, fmt: Format
    ) -> tuple[torch.Tensor | TableRows, torch.Tensor | None]:
        """Convert stacked arrays to what a model takes, on the device where they are.

        Args:
            rows: One array in each row, with zeros after arrays that are shorter than the others.
                `pipeline.media.check_array` describes the arrays.
            lengths: The length of each array's first axis, int64 `[batch]`; 0 where a sample has no
                array.
            fmt: The format of the arrays.

        Returns:
            What the adapter reads, and a bool mask that is True where the input is valid, or None.
        """
        raise NotImplementedError

    def mask_of_present(self, present: torch.Tensor, fmt: Format) -> torch.Tensor | None:
        """Return the mask of a batch where samples lack the modality and `tensors` returns no mask.

        Args:
            present: Whether each sample has the modality, bool `[batch]`.
            fmt: The format of the arrays.

        Returns:
            A mask as the adapter takes it; None if a missing sample needs no mask.
        """
        return None

    def input_config(
        self, fmt: Format, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
    ) -> MediaInput:
        """Return the model's input.

        Args:
            fmt: The format of the arrays.
            pixel_mean: The mean of each channel of images and films.
            pixel_std: The standard deviation of each channel of images and films.

        Raises:
            ValueError: The mean and standard deviation have a different number of channels.
        """
        raise NotImplementedError

    def adapter(self, fmt: Format, adapter: AdapterConfig) -> AdapterConfig:
        """Return the adapter that reads the stored arrays as `adapter` would read the raw media.

        Raises:
            ValueError: The shards hold features that differ from the adapter's.
        """
        return adapter

    def token_grid(self, part: Any, inputs: Any) -> tuple[int, ...]:
        """Return the shape of the token grid of some inputs.

        Args:
            part: The configuration of the modality's tokens, a `TokensConfig`.
            inputs: What the adapter reads, from `tensors`.
        """
        grid: tuple[int, ...] = part.token_grid
        return grid

    def input_picture(self, stored: torch.Tensor, fmt: Format) -> np.ndarray | None:
        """Return one sample as a picture for people; None if such media have none.

        Args:
            stored: The sample's array, as the shards hold it, without padding.
            fmt: The format of the array.

        Returns:
            uint8 `[height, width, 1 or 3]`.
        """
        return None

    def attention_view(
        self, weights: np.ndarray, stored: torch.Tensor, inputs: Any, fmt: Format
    ) -> View:
        """Return where the latents look in one sample, for people.

        Args:
            weights: The weights of the sample's tokens, in the shape of `token_grid`.
            stored: The sample's array, as the shards hold it.
            inputs: What the model reads of this sample, `[1, …]`.
            fmt: The format of the array.
        """
        return no_view(f"there is no view of attention for the modality {fmt.modality!r}")

    def augment_fields(self, fmt: Format) -> tuple[str, ...]:
        """Return the fields of `training.augment` that change such media."""
        return ()

    def mix_fields(self, fmt: Format) -> tuple[str, ...]:
        """Return those of `MIX_FIELDS` that mix samples of such media."""
        return ()

    def check_augment(self, augment: Any, fmt: Format) -> None:
        """Refuse values of `training.augment` that such media cannot take.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """

    def stored_as(self, fmt: Format) -> str:
        """Return how the shards hold the media, for errors, e.g. ` stored as mel`."""
        return ""


@cache
def inputs_named(name: str) -> ModalityInputs[Any]:
    """Return the inputs of the modality with this name."""
    found: ModalityInputs[Any] = load(modality(name).inputs)()
    return found


def inputs_of(fmt: MediaFormat) -> ModalityInputs[Any]:
    """Return the inputs of a format's modality."""
    return inputs_named(fmt.modality)


def array_of_zeros(fmt: MediaFormat, size: int) -> np.ndarray:
    """Return the stacked arrays of a batch of `size` samples, none of which has the modality."""
    dtype, _ = modality_of(fmt).array_type(fmt)
    return np.zeros((size, *inputs_of(fmt).blank_shape(fmt)), dtype)


def check_equal(adapter: AdapterConfig, stored: Any, section: str, fields: str) -> None:
    """Refuse an adapter whose fields differ from those of the features in the shards.

    Args:
        adapter: The adapter's configuration.
        stored: The configuration of the stored features.
        section: The name of that configuration, for the error.
        fields: The names of fields that both configurations have, separated by spaces.

    Raises:
        ValueError: The message names the first field that differs.
    """
    for field in fields.split():
        if getattr(stored, field) != getattr(adapter, field):
            raise ValueError(
                f"adapter.{field} is {getattr(adapter, field)}, but {section}.{field} is "
                f"{getattr(stored, field)}; make them equal"
            )
