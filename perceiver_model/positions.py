"""The position features of a grid of tokens, as the axis tables of an input array."""

import torch
from torch import nn

from perceiver_model.attention.multi_head import linear
from perceiver_model.attention.tokens import split_axes
from perceiver_model.config import FourierConfig, LearnedPositions, PositionConfig
from perceiver_model.constants import Float32Constant
from perceiver_model.fourier import axis_position_tables


def build_positions(
    config: PositionConfig | None,
    grid: tuple[int, ...],
    max_resolution: tuple[float, ...],
    table: torch.Tensor | None = None,
) -> nn.Module:
    """Build the positions of a configuration.

    Args:
        config: The configuration. None means no positions.
        grid: The shape of the token grid.
        max_resolution: The resolution of each dimension, for Fourier features.
        table: The features of every token, as in `FourierPositions`. None computes them.

    Raises:
        ValueError: If the table is of another grid, or the configuration has no Fourier features.
    """
    if isinstance(config, FourierConfig):
        return FourierPositions(config, grid, max_resolution, table)
    if table is not None:
        raise ValueError(
            "positions: given as a table, but the configuration has no Fourier features"
        )
    if config is None:
        return NoPositions()
    return LearnedGridPositions(config, grid)


class NoPositions(nn.Module):
    """No position features, because the content holds the positions or the model needs none."""

    def forward(self) -> tuple[torch.Tensor, ...]:
        """Return the empty tuple."""
        return ()


class FourierPositions(nn.Module):
    """Constant Fourier features (paper, section 3.2), with one table per axis.

    They are not part of the state dict.

    Args:
        config: The configuration of the features.
        grid: The shape of the token grid.
        max_resolution: The resolution of each dimension.
        table: The features of every token, floating point `[tokens, position_channels]`, as
            `position_table` returns and shard sets store them. None computes them.

    Raises:
        ValueError: If the table is not of this grid.
    """

    def __init__(
        self,
        config: FourierConfig,
        grid: tuple[int, ...],
        max_resolution: tuple[float, ...],
        table: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if table is None:
            axis_tables = axis_position_tables(
                grid, config.num_bands, max_resolution, precision=config.precision
            )
        else:
            axis_tables = split_axes(table.float(), grid, config.num_bands)
        self.axes = nn.ModuleList(Float32Constant(axis_table) for axis_table in axis_tables)

    def forward(self) -> tuple[torch.Tensor, ...]:
        """Return one table per axis, float32 `[size, position_channels]`."""
        return tuple(axis() for axis in self.axes)


class LearnedGridPositions(nn.Module):
    """One learned vector per token, drawn from a truncated normal distribution with std 0.02."""

    def __init__(self, config: LearnedPositions, grid: tuple[int, ...]) -> None:
        super().__init__()
        num_tokens = torch.Size(grid).numel()
        self.table = nn.Parameter(torch.empty(num_tokens, config.num_channels))
        nn.init.trunc_normal_(self.table, std=0.02, a=-2.0, b=2.0)
        self.project = (
            nn.Identity()
            if config.projected_channels is None
            else linear(config.num_channels, config.projected_channels)
        )

    def forward(self) -> tuple[torch.Tensor, ...]:
        """Return a single table `[tokens, position_channels]`, with the whole grid as one axis."""
        return (self.project(self.table),)
