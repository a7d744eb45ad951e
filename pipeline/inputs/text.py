"""How a model reads texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perceiver_model.adapters.configs import TextInput
from pipeline.inputs.attention_view import View, parts
from pipeline.inputs.modality import ModalityInputs
from pipeline.media.text.decode import TextFormat

if TYPE_CHECKING:
    import numpy as np
    import torch

TEXT_FIELDS = ("mask_bytes",)
"""The fields of `training.augment` that change texts."""


class TextInputs(ModalityInputs[TextFormat]):
    """Texts as int64 `[batch, longest]` with a mask `[batch, longest]`.

    The token ids are bytes plus 6 (DeepMind's byte vocabulary), padded with its PAD.
    """

    def full_length(self, fmt: TextFormat) -> int:
        """Return the longest context, in bytes."""
        return fmt.max_length

    def blank_shape(self, fmt: TextFormat) -> tuple[int, ...]:
        """Return the shape of a single byte, which is masked."""
        return (1,)

    def tensors(
        self, rows: torch.Tensor, lengths: torch.Tensor, fmt: TextFormat
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the token ids and their mask."""
        import torch

        from perceiver_model.adapters.text import NUM_SPECIAL, PAD

        mask = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
        return (rows.long() + NUM_SPECIAL).masked_fill(~mask, PAD), mask

    def input_config(
        self, fmt: TextFormat, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
    ) -> TextInput:
        """Return a text input."""
        return TextInput(max_length=fmt.max_length)

    def augment_fields(self, fmt: TextFormat) -> tuple[str, ...]:
        """Return the fields that change texts."""
        return TEXT_FIELDS

    def token_grid(self, part: Any, inputs: Any) -> tuple[int, ...]:
        """Return the length of the longest text."""
        return (inputs.shape[1],)

    def attention_view(
        self, weights: np.ndarray, stored: torch.Tensor, inputs: Any, fmt: TextFormat
    ) -> View:
        """Return the most attended words."""
        from perceiver_model.adapters.text import NUM_SPECIAL, decode_bytes

        words: list[tuple[list[int], float]] = [([], 0.0)]
        for token, weight in zip(inputs[0].tolist(), weights.tolist(), strict=False):
            if token >= NUM_SPECIAL and chr(token - NUM_SPECIAL).isspace():
                words.append(([], 0.0))
            else:
                letters, total = words[-1]
                words[-1] = ([*letters, token], total + weight)
        return parts((decode_bytes(ids), weight) for ids, weight in words if weight > 0)
