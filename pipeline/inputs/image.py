"""How a model reads images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perceiver_model.adapters.configs import ImageInput
from pipeline.inputs.attention_view import View, as_picture, picture
from pipeline.inputs.modality import MIX_FIELDS, ModalityInputs
from pipeline.inputs.pixels import COLOUR_FIELDS, PICTURE_FIELDS, RGB_FIELDS, check_shift
from pipeline.media.image.decode import ImageFormat

if TYPE_CHECKING:
    import numpy as np
    import torch


class ImageInputs(ModalityInputs[ImageFormat]):
    """Images as uint8 `[batch, height, width, channels]`, without a mask."""

    def tensors(
        self, rows: torch.Tensor, lengths: torch.Tensor, fmt: ImageFormat
    ) -> tuple[torch.Tensor, None]:
        """Return the pixels as they are stored, and no mask."""
        return rows, None

    def mask_of_present(self, present: torch.Tensor, fmt: ImageFormat) -> torch.Tensor:
        """Return a bool mask `[batch, height, width]`."""
        return present[:, None, None].expand(-1, fmt.height, fmt.width)

    def input_config(
        self, fmt: ImageFormat, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
    ) -> ImageInput:
        """Return an image input."""
        return ImageInput(
            height=fmt.height,
            width=fmt.width,
            channels=fmt.channels,
            mean=pixel_mean,
            std=pixel_std,
        )

    def input_picture(self, stored: torch.Tensor, fmt: ImageFormat) -> np.ndarray | None:
        """Return the image, if it has 1 or 3 channels."""
        return as_picture(stored)

    def attention_view(
        self, weights: np.ndarray, stored: torch.Tensor, inputs: Any, fmt: ImageFormat
    ) -> View:
        """Return a heat map over the image."""
        return picture(stored, weights)

    def augment_fields(self, fmt: ImageFormat) -> tuple[str, ...]:
        """Return the fields that change images of this number of channels."""
        colours = [f for f in COLOUR_FIELDS if fmt.channels == 3 or f not in RGB_FIELDS]
        return (*PICTURE_FIELDS, *colours)

    def mix_fields(self, fmt: ImageFormat) -> tuple[str, ...]:
        """Return all fields that mix samples."""
        return MIX_FIELDS

    def check_augment(self, augment: Any, fmt: ImageFormat) -> None:
        """Refuse a shift that these images cannot take."""
        check_shift(augment, fmt)
