"""The input array of a cross-attend: tokens with separate content and positions.

A token is [content | position features] (paper, section 3.2). The position features of a regular
grid are the same for every sample, and a sum over its axes: those of pixel (h, w) are rows[h] +
columns[w]. Only the tables of the axes are therefore stored. `dense` builds the full array where it
is needed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class InputArray(NamedTuple):
    """Tokens `[batch, tokens, channels]` as content and position tables.

    Attributes:
        content: The content `[batch, tokens, content_channels]`, in the row-major order of the
            grid.
        axis_tables: One table per axis of the grid, floating point `[size, position_channels]`,
            shared by the batch. No channel is non-zero in two of them. Empty if the content holds
            the positions.
        mask: The tokens that may be attended, bool `[batch, tokens]`, or None for all.
    """

    content: torch.Tensor
    axis_tables: tuple[torch.Tensor, ...] = ()
    mask: torch.Tensor | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """The sizes of the axes; empty without position tables."""
        return tuple(table.shape[0] for table in self.axis_tables)

    def positions(self) -> torch.Tensor:
        """Return the position features of every token, `[tokens, position_channels]`."""
        table = self.axis_tables[0]
        for axis_table in self.axis_tables[1:]:
            table = (table.unsqueeze(1) + axis_table).flatten(0, 1)
        return table

    def dense(self) -> torch.Tensor:
        """Return [content | positions], `[batch, tokens, channels]`, in the content's dtype."""
        if not self.axis_tables:
            return self.content
        positions = self.positions().to(self.content.dtype)
        return torch.cat([self.content, positions.expand(self.content.shape[0], -1, -1)], dim=-1)


def split_axes(
    table: torch.Tensor, grid: Sequence[int], num_bands: int
) -> tuple[torch.Tensor, ...]:
    """Split a table of Fourier features into its axis tables.

    The split is exact: `InputArray.positions` returns the table again. If a feature depends on more
    than one axis, as for permuted pixels, the table stays whole.

    Args:
        table: The features of all tokens, `[prod(grid), channels]`, in the layout of
            `fourier.fourier_features`.
        grid: The shape of the token grid.
        num_bands: The number of frequencies per axis.

    Raises:
        ValueError: If the table has another shape.
    """
    dims = len(grid)
    shape = (math.prod(grid), dims * (2 * num_bands + 1))
    if table.shape != shape:
        raise ValueError(
            f"positions of shape {list(table.shape)}: expected [tokens, position_channels] "
            f"= {list(shape)} for the token grid {tuple(grid)}"
        )
    by_axis = table.view(*grid, -1)
    tables = []
    for axis in range(dims):
        along = by_axis[tuple(slice(None) if other == axis else 0 for other in range(dims))]
        # The channels are [positions of all axes | sines of all axes | cosines of all axes].
        bands = torch.arange(axis * num_bands, (axis + 1) * num_bands, device=table.device)
        position, cosines = bands.new_tensor([axis]), dims * (1 + num_bands) + bands
        channels = torch.cat([position, dims + bands, cosines])
        axis_table = torch.zeros_like(along)
        axis_table[:, channels] = along[:, channels]
        tables.append(axis_table)
    rebuilt = InputArray(table, tuple(tables)).positions()
    # A table on the meta device has a shape but no values to compare.
    return tuple(tables) if table.is_meta or torch.equal(rebuilt, table) else (table,)
