"""Output queries: one vector for each output that the decoder returns (IO, section 3.2).

A query identifies its output. It is made from the position features of an output grid, from the
input's own tokens at the same positions, or from a learned vector. If several modalities or tasks
are decoded together, each query is padded with a vector that is learned for the modality
(`ModalityPadding`).

Outputs are numbered in the row-major order of their grid. Queries are built only for the requested
indices. A huge output can therefore be decoded in parts, or at some of its points.
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
"""A function from output indices to queries.

The indices are int64 `[outputs]` or `[batch, outputs]`. The queries are
`[batch or 1, outputs, query_channels]`.
"""


class OutputPositions(nn.Module):
    """The position features of an output grid, as axis tables (see `tokens.InputArray`).

    They equal those of `FourierPositions` and `LearnedGridPositions`, but the table of the whole
    grid is never built. Fourier features can be computed for a grid of any shape.

    Args:
        config: The configuration of the positions.
        grid: The shape of the output grid.
        spacing: The spacing of Fourier positions.
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
        """Return the axis tables `[size, channels]` of a grid.

        Args:
            grid: A grid with the same number of axes as the configured one. None means the
                configured grid.

        Raises:
            ValueError: If the grid has another number of axes, or if it differs from the configured
                grid and the positions are learned.
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
        # The frequencies follow from the resolution, so every grid uses the configured grid's.
        max_resolution = self.config.max_resolution or self.grid
        return axis_position_tables(
            grid, self.config.num_bands, max_resolution, self.spacing, self.config.precision
        )


class LearnedQueries(nn.Module):
    """One learned vector per output, drawn from a truncated normal distribution with std 0.02."""

    def __init__(self, num_queries: int, num_channels: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, num_channels))
        nn.init.trunc_normal_(self.queries, std=0.02, a=-2.0, b=2.0)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the queries `[batch or 1, outputs, num_channels]` of some outputs.

        Args:
            indices: The output indices, int64 `[outputs]` or `[batch, outputs]`.
        """
        queries = self.queries[indices]
        return queries.unsqueeze(0) if indices.ndim == 1 else queries


def positions_at(tables: Sequence[torch.Tensor], indices: torch.Tensor) -> torch.Tensor:
    """Return the position features of some elements of a grid, `[batch or 1, elements, channels]`.

    Args:
        tables: The axis tables of the grid.
        indices: The row-major indices, int64 `[elements]` or `[batch, elements]`.
    """
    along = coordinates(indices, [table.shape[0] for table in tables])
    features = tables[0][along[0]]
    for table, coordinate in zip(tables[1:], along[1:], strict=True):
        features = features + table[coordinate]
    return features.unsqueeze(0) if indices.ndim == 1 else features


def tokens_at(inputs: InputArray, indices: torch.Tensor) -> torch.Tensor:
    """Return some tokens of an input array as queries, `[batch, elements, channels]`.

    Optical flow is queried in this way (IO, section 4.2).

    Args:
        inputs: The input array.
        indices: The token indices, int64 `[elements]` or `[batch, elements]`.
    """
    content = content_at(inputs.content, indices)
    if not inputs.axis_tables:
        return content
    positions = positions_at(inputs.axis_tables, indices).to(content.dtype)
    return torch.cat([content, positions.expand(content.shape[0], -1, -1)], dim=-1)


def content_at(content: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Select rows of `[batch, tokens, channels]`, for all samples alike or for each sample.

    Args:
        content: The rows of each sample.
        indices: The row indices, int64 `[elements]` or `[batch, elements]`.
    """
    if indices.ndim == 1:
        return content[:, indices]
    # `take_along_dim` would make the batch size a constant of an exported program.
    return content.gather(1, indices.unsqueeze(-1).expand(-1, -1, content.shape[-1]))


def nearest_tokens(
    indices: torch.Tensor, output_grid: Sequence[int], token_grid: Sequence[int]
) -> torch.Tensor:
    """Return the index of the token at the position of each output.

    Both grids cover the same extent.

    Args:
        indices: The row-major output indices, int64 of any shape.
        output_grid: The shape of the output grid.
        token_grid: The shape of the token grid.
    """
    along = coordinates(indices, output_grid)
    tokens = torch.zeros_like(indices)
    for coordinate, outputs, size in zip(along, output_grid, token_grid, strict=True):
        tokens = tokens * size + coordinate * size // outputs
    return tokens


def coordinates(indices: torch.Tensor, grid: Sequence[int]) -> list[torch.Tensor]:
    """Turn row-major indices into coordinates, one tensor per axis of the grid.

    Args:
        indices: The indices, int64 of any shape.
        grid: The shape of the grid.
    """
    along = []
    for size in reversed(grid):
        along.append(indices % size)
        indices = indices // size
    return along[::-1]


def check_indices(indices: torch.Tensor, num_outputs: int, batch: int, what: str) -> None:
    """Check that these are output indices, for all samples alike or for each sample.

    Args:
        indices: int64 `[outputs]` or `[batch, outputs]`, at least one per sample.
        num_outputs: The number of outputs.
        batch: The batch size.
        what: The name of the indices in the error.

    Raises:
        ValueError: If they are not.
    """
    shared = indices.ndim == 1
    if indices.dtype != torch.int64 or not (shared or indices.shape[:-1] == (batch,)):
        raise ValueError(
            f"{what} of shape {list(indices.shape)} and dtype {indices.dtype}: expected "
            f"torch.int64 of shape [outputs] or [{batch}, outputs]"
        )
    if indices.shape[-1] == 0:
        raise ValueError(f"{what}: empty; expected at least one")
    # A compiled graph cannot raise an error that depends on the values of a tensor.
    if torch.compiler.is_compiling():
        return
    lowest, highest = indices.aminmax()
    if lowest < 0 or highest >= num_outputs:
        raise ValueError(
            f"{what} from {int(lowest)} to {int(highest)}: there are {num_outputs} outputs"
        )


def index_parts(indices: torch.Tensor, chunk_size: int | None) -> tuple[torch.Tensor, ...]:
    """Split output indices into parts. The queries of each part are then decoded in turn.

    Args:
        indices: The output indices, int64 `[outputs]` or `[batch, outputs]`.
        chunk_size: The largest number of outputs in a part. None means a single part.

    Raises:
        ValueError: If `chunk_size` is below 1.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size {chunk_size}: must be at least 1, or None for all at once")
    return indices.split(chunk_size or indices.shape[-1], dim=-1)
