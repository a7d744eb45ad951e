"""What every adapter checks of its inputs."""

import torch

Tokens = tuple[torch.Tensor, torch.Tensor | None]
"""A token array's content `[batch, tokens, channels]`, and its mask `[batch, tokens]` or None."""


def check_inputs(
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    shape: tuple[int, ...],
    integer: torch.dtype | None = None,
) -> None:
    """Raises ValueError for inputs of another shape (after the batch) or dtype, or such masks.

    Args:
        inputs: `[batch, *shape]`, floating or of the dtype `integer`. Those of three or more
            dimensions have channels last, which the mask has not.
    """
    check_shape("inputs", inputs, shape)
    if inputs.dtype != integer and not inputs.is_floating_point():
        allowed = "floating" if integer is None else f"{integer} or floating"
        raise ValueError(f"inputs of dtype {inputs.dtype}: expected {allowed}")
    check_mask(mask, inputs.shape[:-1] if inputs.ndim > 2 else inputs.shape)


def check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError for a tensor of another shape after the batch."""
    if tensor.shape[1:] != shape:
        expected = ", ".join(str(size) for size in ("batch", *shape))
        raise ValueError(f"{name} of shape {list(tensor.shape)}: expected [{expected}]")


def check_mask(mask: torch.Tensor | None, *shapes: torch.Size) -> None:
    """Raises ValueError for a mask that isn't bool or has none of the shapes."""
    if mask is not None and (mask.shape not in shapes or mask.dtype != torch.bool):
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(
            f"mask of shape {list(mask.shape)} and dtype {mask.dtype}: expected torch.bool of "
            f"shape {expected}"
        )
