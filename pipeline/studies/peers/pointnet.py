"""PointNet++ (Qi et al., arXiv 1706.02413) for clouds of points, with one scale for each level."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

_DIMS = 3


class Level(NamedTuple):
    """Where a level of set abstraction looks (section 3.2).

    Attributes:
        num_centres: The points that it keeps.
        radius: How far a centre sees.
        num_neighbours: The most points that a centre sees.
    """

    num_centres: int
    radius: float
    num_neighbours: int


class PointNet(nn.Module):
    """Two levels of set abstraction, one over all centres, and a network on its maximum.

    With `width=64` and `last_width=1024` it is the paper's network with single scales (appendix B).

    Args:
        num_classes: The number of classes.
        width: The channels of the first level; each level has twice those of the one before.
        last_width: The channels of the whole cloud.
        levels: Where the first two levels look.
        dropout: The share of channels that the head's layers drop in training.
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        last_width: int,
        levels: Sequence[Level],
        dropout: float,
    ) -> None:
        super().__init__()
        first, second = levels
        self.first = SetAbstraction(0, (width, width, 2 * width), first)
        self.second = SetAbstraction(2 * width, (2 * width, 2 * width, 4 * width), second)
        self.whole = _layers(4 * width + _DIMS, (4 * width, 8 * width, last_width))
        head: list[nn.Module] = []
        before = last_width
        for after in (max(last_width // 2, 1), max(last_width // 4, 1)):
            head += [*_layers(before, (after,)), nn.Dropout(dropout)]
            before = after
        self.head = nn.Sequential(*head, nn.Linear(before, num_classes))

    def forward(self, points: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits `[batch, classes]`.

        Args:
            points: The coordinates, float `[batch, points, 3]`.
            mask: The valid points, bool `[batch, points]`, at least one in each cloud; None if all
                are valid.
        """
        places, features = self.first(points, None, mask)
        places, features = self.second(places, features, None)
        tokens = torch.cat([places, features], dim=2)
        cloud = self.whole(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]).amax(dim=1)
        logits: torch.Tensor = self.head(cloud)
        return logits


class SetAbstraction(nn.Module):
    """Centres that are far from one another, each with the maximum over its neighbours.

    Args:
        channels: The channels of a point beside its coordinates.
        widths: The channels of the shared layers.
        level: Where it looks.
    """

    def __init__(self, channels: int, widths: Sequence[int], level: Level) -> None:
        super().__init__()
        self.level = level
        self.layers = _layers(channels + _DIMS, widths)

    def forward(
        self, points: torch.Tensor, features: torch.Tensor | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the centres `[batch, centres, 3]` and their features `[batch, centres, last]`.

        Args:
            points: The coordinates, float `[batch, points, 3]`.
            features: What else is known of each point, `[batch, points, channels]`, or None.
            mask: The valid points, bool `[batch, points]`; None if all are valid.
        """
        batch = torch.arange(len(points), device=points.device)
        chosen = farthest_points(points, mask, self.level.num_centres)
        centres = points[batch[:, None], chosen]
        near = neighbours(points, centres, mask, self.level)
        where = batch[:, None, None]
        seen = points[where, near] - centres[:, :, None]
        if features is not None:
            seen = torch.cat([seen, features[where, near]], dim=3)
        found = self.layers(seen.flatten(0, 2)).unflatten(0, seen.shape[:3])
        return centres, found.amax(dim=2)


@torch.no_grad()
def farthest_points(points: torch.Tensor, mask: torch.Tensor | None, number: int) -> torch.Tensor:
    """Return the indices of points each of which is the farthest from those before it.

    Args:
        points: The coordinates, float `[batch, points, 3]`.
        mask: The valid points, bool `[batch, points]`; None if all are valid.
        number: How many. A cloud with fewer valid points gives some of them again.

    Returns:
        int64 `[batch, number]`. The first one is the first valid point.
    """
    batch = torch.arange(len(points), device=points.device)
    valid = torch.ones_like(points[:, :, 0], dtype=torch.bool) if mask is None else mask
    apart = torch.full_like(points[:, :, 0], torch.inf).masked_fill(~valid, -1.0)
    chosen = [valid.int().argmax(dim=1)]
    for _ in range(number - 1):
        last = points[batch, chosen[-1]][:, None]
        apart = torch.minimum(apart, (points - last).square().sum(dim=2))
        chosen.append(apart.argmax(dim=1))
    return torch.stack(chosen, dim=1)


@torch.no_grad()
def neighbours(
    points: torch.Tensor, centres: torch.Tensor, mask: torch.Tensor | None, level: Level
) -> torch.Tensor:
    """Return the indices of the valid points nearest to each centre within the radius.

    The paper takes any within the radius. Where there are fewer, the nearest fills up, which
    changes no maximum.

    Args:
        points: The coordinates, float `[batch, points, 3]`.
        centres: The centres, float `[batch, centres, 3]`.
        mask: The valid points, bool `[batch, points]`; None if all are valid.
        level: The radius and the number of neighbours.

    Returns:
        int64 `[batch, centres, neighbours]`.
    """
    apart = torch.cdist(centres.float(), points.float())
    if mask is not None:
        apart = apart.masked_fill(~mask[:, None], torch.inf)
    distances, near = apart.topk(min(level.num_neighbours, points.shape[1]), dim=2, largest=False)
    return torch.where(distances <= level.radius, near, near[:, :, :1])


def _layers(channels: int, widths: Sequence[int]) -> nn.Sequential:
    """Return layers for rows `[rows, channels]`, each normalised over the rows of a batch."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)
