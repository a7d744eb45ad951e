"""Rotary positions: queries and keys are turned by their position, so that scores see distances.

Su et al. (arXiv 2104.09864), section 3.4. As in Perceiver AR's released code, neighbouring
channels form the pairs, only the first channels of a head are turned, and the slowest pair turns
by one radian over the longest context.
"""

from typing import NamedTuple

import torch
from torch import nn

from perceiver_model.constants import Float32Constant


class Rotation(NamedTuple):
    """Cosines and sines of the angles, each float32 `[batch or 1, 1, tokens, pairs]`."""

    cosine: torch.Tensor
    sine: torch.Tensor

    def last(self, num_tokens: int) -> "Rotation":
        """Of the last tokens only."""
        return Rotation(self.cosine[:, :, -num_tokens:], self.sine[:, :, -num_tokens:])


class RotaryTable(nn.Module):
    """The angles of every position, constant; not part of the state dict.

    Args:
        max_length: number of positions.
        rotated_channels: channels of a head that are turned, two for each angle.
        max_wavelength: pair i of n turns by max_wavelength^(-i / (n - 1)) radians a token.
    """

    def __init__(self, *, max_length: int, rotated_channels: int, max_wavelength: float) -> None:
        super().__init__()
        # In float64, for in float32 an angle of 10⁵ radians is off by 0.004.
        exponents = torch.linspace(0, 1, rotated_channels // 2, dtype=torch.float64)
        angles = torch.arange(max_length, dtype=torch.float64).outer(max_wavelength**-exponents)
        self.table = Float32Constant(torch.stack([angles.cos(), angles.sin()]))

    def forward(self, positions: torch.Tensor) -> Rotation:
        """The rotation of tokens at integer `positions` `[batch or 1, tokens]`."""
        cosine, sine = self.table()
        return Rotation(cosine[positions].unsqueeze(1), sine[positions].unsqueeze(1))


def rotate(heads: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
    """Queries or keys `[batch, heads, tokens, width]`, turned; None leaves them as they are."""
    if rotation is None:
        return heads
    cosine, sine = rotation
    rotated_channels = 2 * cosine.shape[-1]
    turned, kept = heads.split([rotated_channels, heads.shape[-1] - rotated_channels], dim=-1)
    even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1)
    return torch.cat([turned.flatten(-2).to(heads.dtype), kept], dim=-1)
