"""Rotary positions: queries and keys are rotated by their position, so scores depend on distances.

See Su et al. (arXiv 2104.09864), section 3.4. As in Perceiver AR's released code, neighbouring
channels form the pairs, only the first channels of a head are rotated, and the slowest pair rotates
by one radian over the longest context.
"""

from typing import NamedTuple

import torch
from torch import nn

from perceiver_model.constants import Float32Constant


class Rotation(NamedTuple):
    """The cosines and sines of the angles.

    Attributes:
        cosine: The cosines, float32 `[batch or 1, 1, tokens, pairs]`.
        sine: The sines, in the same shape.
    """

    cosine: torch.Tensor
    sine: torch.Tensor

    def last(self, num_tokens: int) -> "Rotation":
        """Return the rotation of the last tokens only."""
        return Rotation(self.cosine[:, :, -num_tokens:], self.sine[:, :, -num_tokens:])


class RotaryTable(nn.Module):
    """The constant angles of every position. They are not part of the state dict.

    Args:
        max_length: The number of positions.
        rotated_channels: The number of channels of a head that are rotated, two per angle.
        max_wavelength: Pair i of n rotates by max_wavelength^(-i / (n - 1)) radians per token.
    """

    def __init__(self, *, max_length: int, rotated_channels: int, max_wavelength: float) -> None:
        super().__init__()
        # float64 is needed: in float32, an angle of 10⁵ radians has an error of 0.004.
        exponents = torch.linspace(0, 1, rotated_channels // 2, dtype=torch.float64)
        angles = torch.arange(max_length, dtype=torch.float64).outer(max_wavelength**-exponents)
        self.table = Float32Constant(torch.stack([angles.cos(), angles.sin()]))

    def forward(self, positions: torch.Tensor) -> Rotation:
        """Return the rotation of tokens at integer `positions`, `[batch or 1, tokens]`."""
        cosine, sine = self.table()
        return Rotation(cosine[positions].unsqueeze(1), sine[positions].unsqueeze(1))


def rotate(heads: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
    """Rotate queries or keys by their positions.

    Args:
        heads: The queries or keys `[batch, heads, tokens, width]`.
        rotation: The rotation of the tokens. None leaves them unchanged.
    """
    if rotation is None:
        return heads
    cosine, sine = rotation
    rotated_channels = 2 * cosine.shape[-1]
    rotated, unrotated = heads.split([rotated_channels, heads.shape[-1] - rotated_channels], dim=-1)
    even, odd = rotated.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1)
    return torch.cat([rotated.flatten(-2).to(heads.dtype), unrotated], dim=-1)
