"""Fourier features of positions, in DeepMind's layout (paper, section 3.2 and appendix D).

The features of a position x in [-1, 1]^d are
    [x_1 .. x_d | sin(π f_1k x_1) over bands k, .., sin(π f_dk x_d) | the same with cos]
with the frequencies f_i1 .. f_iK of dimension i spaced evenly from 1 to half its maximum
resolution, its Nyquist frequency: d · (2K + 1) channels.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

Precision = Literal["float64", "float32"]
"""Of the arithmetic. Angles reach hundreds of radians, so float32, as transformers computes, leaves
features off by about 1e-5 for images and 1e-3 for long sounds."""

Spacing = Literal["ends", "steps"]
"""Where the n positions of a dimension lie: "ends" is evenly from -1 to 1, both included; "steps"
is -1 + 2 i / n, as DeepMind's decoders place outputs that are asked for by number."""

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def grid_positions(
    shape: Sequence[int], spacing: Spacing = "ends", precision: Precision = "float64"
) -> torch.Tensor:
    """Positions of a regular grid: `[*shape, len(shape)]`, in [-1, 1] in each dimension.

    The last dimension holds the coordinates in the order of `shape` ('ij' indexing).
    """
    dtype = _DTYPES[precision]
    if spacing == "ends":
        axes = [torch.linspace(-1.0, 1.0, size, dtype=dtype) for size in shape]
    else:
        axes = [-1 + 2 * torch.arange(size, dtype=dtype) / size for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def fourier_features(
    positions: torch.Tensor,
    num_bands: int,
    max_resolution: Sequence[float],
    precision: Precision = "float64",
) -> torch.Tensor:
    """Features of any positions, float32 `[..., dims * (2 * num_bands + 1)]`.

    Args:
        positions: floating `[..., dims]` in [-1, 1], with or without batch dimensions.
        max_resolution: one resolution per dimension.

    Raises ValueError unless `positions` has as many coordinates as there are resolutions.
    """
    if positions.shape[-1] != len(max_resolution):
        raise ValueError(
            f"positions of shape {list(positions.shape)} have {positions.shape[-1]} coordinates, "
            f"but max_resolution {tuple(max_resolution)} has {len(max_resolution)}"
        )
    positions = positions.to(_DTYPES[precision])
    frequencies = torch.stack(
        [
            torch.linspace(
                1.0, resolution / 2, num_bands, dtype=positions.dtype, device=positions.device
            )
            for resolution in max_resolution
        ]
    )
    # A number would be rounded to float32 in ONNX files.
    pi = torch.tensor(math.pi, dtype=positions.dtype, device=positions.device)
    angles = pi * (positions.unsqueeze(-1) * frequencies).flatten(-2)
    return torch.cat([positions, angles.sin(), angles.cos()], dim=-1).float()


def position_table(
    shape: Sequence[int], num_bands: int, max_resolution: Sequence[float]
) -> torch.Tensor:
    """Features of every token of a grid in row-major order, float32 `[prod(shape), channels]`."""
    positions = grid_positions(shape).flatten(end_dim=-2)
    return fourier_features(positions, num_bands, max_resolution)


def axis_position_tables(
    shape: Sequence[int],
    num_bands: int,
    max_resolution: Sequence[float],
    spacing: Spacing = "ends",
    precision: Precision = "float64",
) -> tuple[torch.Tensor, ...]:
    """Each axis's part of `position_table`, float32 `[size, channels]`, zero in the others' part.

    The features of the token at (i, j, ..) are the sum of the rows i, j, .. of the axes' tables. So
    a video's 1.6 million pixels need no table of their own.
    """
    tables = []
    for axis, (size, resolution) in enumerate(zip(shape, max_resolution, strict=True)):
        positions = grid_positions((size,), spacing, precision)
        features = fourier_features(positions, num_bands, (resolution,), precision)
        parts = [
            F.pad(part, (axis * width, (len(shape) - 1 - axis) * width))
            for width, part in zip(
                (1, num_bands, num_bands),
                features.split([1, num_bands, num_bands], dim=-1),
                strict=True,
            )
        ]
        tables.append(torch.cat(parts, dim=-1))
    return tuple(tables)
