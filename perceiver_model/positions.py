"""Position features of a grid of tokens, as the axis tables of an input array."""

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
    """The positions of a configuration; `table` is of `FourierPositions`.

    Raises ValueError for a table of another grid, or one given where there are no Fourier features.
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
    """No tables: the content holds the positions, or there are none."""

    def forward(self) -> tuple[torch.Tensor, ...]:
        """The empty tuple."""
        return ()


class FourierPositions(nn.Module):
    """Fourier features (paper, section 3.2), one table for each axis, constant.

    Args:
        table: the features of every token, floating `[tokens, position_channels]`, as
            `position_table` gives and shard sets hold; computed if None. They are not part of the
            state dict.

    Raises ValueError for a table that is not of this grid.
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
        """Float32 `[size, position_channels]` for each axis."""
        return tuple(axis() for axis in self.axes)


class LearnedGridPositions(nn.Module):
    """One learned vector for every token, drawn from a truncated normal of std 0.02."""

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
        """One table `[tokens, position_channels]`: the grid as a single axis."""
        return (self.project(self.table),)
