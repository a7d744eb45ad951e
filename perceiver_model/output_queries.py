"""Output queries: what a decoder is asked for, one vector for every output (IO, section 3.2).

A query is made of what tells its output apart: the position features of an output grid, the
input's own tokens there, a learned vector, or, where several modalities or tasks are decoded
together, one of these padded with a vector learned for the modality (`ModalityPadding`).

Outputs are numbered in row-major order of their grid, and queries are built only for the numbers
that are asked for: a huge output is decoded part by part, or at some of its points.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import FourierConfig, LearnedPositions, PositionConfig
from perceiver_model.constants import Float32Constant
from perceiver_model.fourier import Spacing, axis_position_tables
from perceiver_model.positions import LearnedGridPositions

QueriesAt = Callable[[torch.Tensor], torch.Tensor]
"""From outputs' numbers, int64 `[outputs]` or `[batch, outputs]`, to their queries
`[batch or 1, outputs, query_channels]`."""


class OutputPositions(nn.Module):
    """Position features of an output grid, as axis tables (see `tokens.InputArray`).

    They are those of `FourierPositions` and `LearnedGridPositions`, but no table of the whole grid
    is ever built, and Fourier features can be had for a grid of any shape.
    """

    def __init__(
        self, config: PositionConfig, grid: tuple[int, ...], spacing: Spacing = "ends"
    ) -> None:
        super().__init__()
        self.config = config
        self.grid = grid
        self.spacing: Spacing = spacing
        if isinstance(config, FourierConfig):
            self.axes = nn.ModuleList(Float32Constant(table) for table in self._tables(grid))
        else:
            self.learned = LearnedGridPositions(config, grid)

    def forward(self, grid: tuple[int, ...] | None = None) -> tuple[torch.Tensor, ...]:
        """Axis tables `[size, channels]` of a grid of as many axes; None is the configured one.

        Raises ValueError for another grid than the configured one if positions are learned, and
        for one with another number of axes.
        """
        same = grid is None or tuple(grid) == self.grid
        if isinstance(self.config, LearnedPositions):
            if not same:
                raise ValueError(
                    f"output grid {grid}: positions are learned for {self.grid} only; Fourier "
                    "features have any resolution"
                )
            return self.learned()
        if grid is None or same:
            return tuple(axis() for axis in self.axes)
        if len(grid) != len(self.grid) or min(grid) < 1:
            raise ValueError(f"output grid {grid}: expected {len(self.grid)} sizes of at least 1")
        device = self.axes[0]().device
        return tuple(table.to(device) for table in self._tables(tuple(grid)))

    def _tables(self, grid: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        assert isinstance(self.config, FourierConfig)
        # The resolution sets the frequencies, so it is the configured grid's for every other one.
        max_resolution = self.config.max_resolution or self.grid
        return axis_position_tables(
            grid, self.config.num_bands, max_resolution, self.spacing, self.config.precision
        )


class LearnedQueries(nn.Module):
    """One learned vector for every output, drawn from a truncated normal of std 0.02."""

    def __init__(self, num_queries: int, num_channels: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, num_channels))
        nn.init.trunc_normal_(self.queries, std=0.02, a=-2.0, b=2.0)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """The queries `[batch or 1, outputs, num_channels]` of these outputs."""
        queries = self.queries[indices]
        return queries.unsqueeze(0) if indices.ndim == 1 else queries


def positions_at(tables: Sequence[torch.Tensor], indices: torch.Tensor) -> torch.Tensor:
    """The position features of some elements of a grid, `[batch or 1, elements, channels]`.

    Args:
        tables: axis tables of the grid.
            indices: int64 `[elements]` or `[batch, elements]`.
    """
    along = coordinates(indices, [table.shape[0] for table in tables])
    features = tables[0][along[0]]
    for table, coordinate in zip(tables[1:], along[1:], strict=True):
        features = features + table[coordinate]
    return features.unsqueeze(0) if indices.ndim == 1 else features


def tokens_at(inputs: InputArray, indices: torch.Tensor) -> torch.Tensor:
    """Some of an input array's own tokens as queries, `[batch, elements, channels]`.

    Args:
        indices: int64 `[elements]` or `[batch, elements]`. Flow is queried this way (IO, section
            4.2).
    """
    content = content_at(inputs.content, indices)
    if not inputs.axis_tables:
        return content
    positions = positions_at(inputs.axis_tables, indices).to(content.dtype)
    return torch.cat([content, positions.expand(content.shape[0], -1, -1)], dim=-1)


def content_at(content: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Some rows of each sample's `[batch, tokens, channels]`, the same or each sample's own."""
    if indices.ndim == 1:
        return content[:, indices]
    # `take_along_dim` would make the batch a constant of exported programs.
    return content.gather(1, indices.unsqueeze(-1).expand(-1, -1, content.shape[-1]))


def nearest_tokens(
    indices: torch.Tensor, output_grid: Sequence[int], token_grid: Sequence[int]
) -> torch.Tensor:
    """For outputs of one grid the tokens of another that lie there, both over the same extent."""
    along = coordinates(indices, output_grid)
    tokens = torch.zeros_like(indices)
    for coordinate, outputs, size in zip(along, output_grid, token_grid, strict=True):
        tokens = tokens * size + coordinate * size // outputs
    return tokens


def coordinates(indices: torch.Tensor, grid: Sequence[int]) -> list[torch.Tensor]:
    """Row-major numbers as coordinates, one tensor for each axis of the grid."""
    along = []
    for size in reversed(grid):
        along.append(indices % size)
        indices = indices // size
    return along[::-1]


def check_indices(indices: torch.Tensor, num_outputs: int, batch: int, what: str) -> None:
    """Raises ValueError unless these are numbers of outputs, for all samples or for each."""
    shared = indices.ndim == 1
    if indices.dtype != torch.int64 or not (shared or indices.shape[:-1] == (batch,)):
        raise ValueError(
            f"{what} of shape {list(indices.shape)} and dtype {indices.dtype}: expected "
            f"torch.int64 of shape [outputs] or [{batch}, outputs]"
        )
    if indices.shape[-1] == 0:
        raise ValueError(f"{what}: none asked for")
    # A compiled graph can't raise for what a tensor holds.
    if torch.compiler.is_compiling():
        return
    lowest, highest = indices.aminmax()
    if lowest < 0 or highest >= num_outputs:
        raise ValueError(
            f"{what} from {int(lowest)} to {int(highest)}: there are {num_outputs} outputs"
        )


def index_parts(indices: torch.Tensor, chunk_size: int | None) -> tuple[torch.Tensor, ...]:
    """Outputs' numbers, at most `chunk_size` at a time, whose queries are then built in turn.

    None is all at once; raises ValueError for a size below 1.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size {chunk_size}: must be at least 1, or None for all at once")
    return indices.split(chunk_size or indices.shape[-1], dim=-1)
