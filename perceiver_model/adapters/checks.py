"""What every adapter checks of its inputs."""

import torch

Tokens = tuple[torch.Tensor, torch.Tensor | None]
"""A token array's content `[batch, tokens, channels]`, and its mask `[batch, tokens]` or None."""


def check_inputs(
    inputs: torch.Tensor, mask: torch.Tensor | None, shape: tuple[int, ...], integer: torch.dtype
) -> None:
    """Raises ValueError for inputs of another shape (after the batch) or dtype, or such masks."""
    if inputs.shape[1:] != shape:
        expected = ", ".join(str(size) for size in ("batch", *shape))
        raise ValueError(f"inputs of shape {list(inputs.shape)}: expected [{expected}]")
    if inputs.dtype != integer and not inputs.is_floating_point():
        raise ValueError(f"inputs of dtype {inputs.dtype}: expected {integer} or floating")
    mask_shape = inputs.shape[:3]  # [batch, height, width] of images, [batch, num_samples] of sound
    if mask is not None and (mask.shape != mask_shape or mask.dtype != torch.bool):
        raise ValueError(
            f"mask of shape {list(mask.shape)} and dtype {mask.dtype}: expected torch.bool of "
            f"shape {list(mask_shape)}"
        )
