"""The checks that all adapters share."""

import torch

Tokens = tuple[torch.Tensor, torch.Tensor | None]
"""The content of tokens `[batch, tokens, channels]`, and their mask `[batch, tokens]` or None."""


def check_inputs(
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    shape: tuple[int, ...],
    integer: torch.dtype | None = None,
) -> None:
    """Check the shape and the dtype of an adapter's inputs and of their mask.

    Args:
        inputs: The inputs `[batch, *shape]`, floating point or of the dtype `integer`. Inputs of
            three or more dimensions have the channels last, and their mask has no channels.
        mask: The mask, bool, or None.
        shape: The expected shape without the batch.
        integer: The integer dtype that is allowed, or None.

    Raises:
        ValueError: If a shape or a dtype is wrong.
    """
    check_shape("inputs", inputs, shape)
    if inputs.dtype != integer and not inputs.is_floating_point():
        allowed = "floating" if integer is None else f"{integer} or floating"
        raise ValueError(f"inputs of dtype {inputs.dtype}: expected {allowed}")
    check_mask(mask, inputs.shape[:-1] if inputs.ndim > 2 else inputs.shape)


def check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Check the shape of a tensor without its batch dimension.

    Args:
        name: The name of the tensor in the error.
        tensor: The tensor.
        shape: The expected shape without the batch.

    Raises:
        ValueError: If the shape is wrong.
    """
    if tensor.shape[1:] != shape:
        expected = ", ".join(str(size) for size in ("batch", *shape))
        raise ValueError(f"{name} of shape {list(tensor.shape)}: expected [{expected}]")


def check_mask(mask: torch.Tensor | None, *shapes: torch.Size) -> None:
    """Check that a mask is None, or bool with one of the shapes.

    Raises:
        ValueError: If it is not.
    """
    if mask is not None and (mask.shape not in shapes or mask.dtype != torch.bool):
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(
            f"mask of shape {list(mask.shape)} and dtype {mask.dtype}: expected torch.bool of "
            f"shape {expected}"
        )
