"""The geometry of stages of residual blocks. It does not import torch."""

import math

from perceiver_model.config_checks import Count
from perceiver_model.layer_flops import matmul_flops

Stages = tuple[Count, ...]
"""The number of residual blocks of each stage."""
KERNEL = 3
"""The side of the convolutions in a residual block."""


def stages_grid(grid: tuple[int, int], stages: tuple[int, ...]) -> tuple[int, int]:
    """Return the grid after the stages: every stage but the first halves it, rounded up."""
    for _ in stages[1:]:
        grid = math.ceil(grid[0] / 2), math.ceil(grid[1] / 2)
    return grid


def stages_channels(channels: int, stages: tuple[int, ...]) -> int:
    """Return the channels after the stages: every stage but the first doubles them."""
    return channels << max(0, len(stages) - 1)


def stages_flops(grid: tuple[int, int], channels: int, stages: tuple[int, ...]) -> int:
    """Return the FLOPs of the convolutions of the stages.

    Args:
        grid: The grid before the first stage.
        channels: The channels before the first stage.
        stages: The number of residual blocks of each stage.
    """
    total = 0
    for number, blocks in enumerate(stages):
        if number:
            grid, before, channels = stages_grid(grid, (1, 1)), channels, 2 * channels
            total += matmul_flops(math.prod(grid), before, channels)
        each = 2 * matmul_flops(math.prod(grid), KERNEL * KERNEL * channels, channels)
        total += blocks * each
    return total
