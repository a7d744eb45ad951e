"""The input array of a cross-attend: tokens, with their content and positions kept apart.

A token is [content | position features] (paper, section 3.2). The position features of a regular
grid are the same for every sample, and a sum over its axes: those of pixel (h, w) are
rows[h] + columns[w]. So only the axes' tables are kept, and `dense` builds the rest where it is
needed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class InputArray(NamedTuple):
    """Tokens `[batch, tokens, channels]` as content and position tables.

    Attributes:
        content: `[batch, tokens, content_channels]`, tokens in row-major order of the grid.
        axis_tables: floating `[size, position_channels]` for each axis of the grid, shared by the
            batch. No channel is non-zero in two of them. Empty if the content holds the positions.
        mask: bool `[batch, tokens]`, True where a token may be attended; None for everywhere.
    """

    content: torch.Tensor
    axis_tables: tuple[torch.Tensor, ...] = ()
    mask: torch.Tensor | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """The axes' sizes; empty without position tables."""
        return tuple(table.shape[0] for table in self.axis_tables)

    def positions(self) -> torch.Tensor:
        """The position features of every token, `[tokens, position_channels]`."""
        table = self.axis_tables[0]
        for axis_table in self.axis_tables[1:]:
            table = (table.unsqueeze(1) + axis_table).flatten(0, 1)
        return table

    def dense(self) -> torch.Tensor:
        """[content | positions]: `[batch, tokens, channels]`, in the content's dtype."""
        if not self.axis_tables:
            return self.content
        positions = self.positions().to(self.content.dtype)
        return torch.cat([self.content, positions.expand(self.content.shape[0], -1, -1)], dim=-1)


def split_axes(
    table: torch.Tensor, grid: Sequence[int], num_bands: int
) -> tuple[torch.Tensor, ...]:
    """The axis tables of a table of Fourier features, exactly: `InputArray.positions` undoes it.

    Args:
        table: `[prod(grid), channels]` in the layout of `fourier.fourier_features`. One whose
            features depend on more than one axis, such as that of permuted pixels, stays whole.

    Raises ValueError for a table of another shape.
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
        # Channels are [axes' positions | axes' sines | axes' cosines].
        bands = torch.arange(axis * num_bands, (axis + 1) * num_bands, device=table.device)
        position, cosines = bands.new_tensor([axis]), dims * (1 + num_bands) + bands
        channels = torch.cat([position, dims + bands, cosines])
        axis_table = torch.zeros_like(along)
        axis_table[:, channels] = along[:, channels]
        tables.append(axis_table)
    rebuilt = InputArray(table, tuple(tables)).positions()
    # A table without values, on the meta device, has only its shape to tell.
    return tuple(tables) if table.is_meta or torch.equal(rebuilt, table) else (table,)
