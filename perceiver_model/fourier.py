"""Fourier features of positions, in DeepMind's layout (paper, section 3.2 and appendix D).

The features of a position x in [-1, 1]^d are

    [x_1 .. x_d | sin(π f_1k x_1) over bands k, .., sin(π f_dk x_d) | the same with cos]

The frequencies f_i1 .. f_iK of dimension i are evenly spaced from 1 to half of its maximum
resolution, which is its Nyquist frequency. There are d · (2K + 1) channels.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

Precision = Literal["float64", "float32"]
"""The precision of the arithmetic.

Angles reach hundreds of radians. In float32, which transformers uses, the features have errors of
about 1e-5 for images and 1e-3 for long sounds.
"""

Spacing = Literal["ends", "steps"]
"""The spacing of the n positions of a dimension.

"ends" spaces them evenly from -1 to 1, with both included. "steps" puts them at -1 + 2 i / n, as
DeepMind's decoders do for outputs that are selected by index.
"""

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def grid_positions(
    shape: Sequence[int], spacing: Spacing = "ends", precision: Precision = "float64"
) -> torch.Tensor:
    """Return the positions of a regular grid, `[*shape, len(shape)]`, in [-1, 1] in each dimension.

    The last dimension holds the coordinates in the order of `shape` ('ij' indexing).

    Args:
        shape: The shape of the grid.
        spacing: The spacing of the positions in each dimension.
        precision: The dtype of the result.
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
    """Return the features of positions, float32 `[..., dims * (2 * num_bands + 1)]`.

    Args:
        positions: The positions, floating point `[..., dims]` in [-1, 1], with or without batch
            dimensions.
        num_bands: The number of frequencies per dimension.
        max_resolution: One resolution per dimension.
        precision: The precision of the arithmetic.

    Raises:
        ValueError: If the number of coordinates differs from the number of resolutions.
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
    # ONNX would round a Python number to float32.
    pi = torch.tensor(math.pi, dtype=positions.dtype, device=positions.device)
    angles = pi * (positions.unsqueeze(-1) * frequencies).flatten(-2)
    return torch.cat([positions, angles.sin(), angles.cos()], dim=-1).float()


def position_table(
    shape: Sequence[int], num_bands: int, max_resolution: Sequence[float]
) -> torch.Tensor:
    """Return the features of a grid's tokens, row-major, float32 `[prod(shape), channels]`.

    Args:
        shape: The shape of the grid.
        num_bands: The number of frequencies per dimension.
        max_resolution: One resolution per dimension.
    """
    positions = grid_positions(shape).flatten(end_dim=-2)
    return fourier_features(positions, num_bands, max_resolution)


def axis_position_tables(
    shape: Sequence[int],
    num_bands: int,
    max_resolution: Sequence[float],
    spacing: Spacing = "ends",
    precision: Precision = "float64",
) -> tuple[torch.Tensor, ...]:
    """Return the part of `position_table` that belongs to each axis, float32 `[size, channels]`.

    The channels of the other axes are zero. The features of the token at (i, j, ..) are the sum of
    row i of the first table, row j of the second, and so on. A video of 1.6 million pixels
    therefore needs no table of its own.

    Args:
        shape: The shape of the grid.
        num_bands: The number of frequencies per dimension.
        max_resolution: One resolution per dimension.
        spacing: The spacing of the positions in each dimension.
        precision: The precision of the arithmetic.
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
