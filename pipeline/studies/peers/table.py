"""The peers by name, each built with as many parameters as a Perceiver has."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.studies.peers.linear import Performer, SetTransformer
from pipeline.studies.peers.pointnet import Level, PointNet
from pipeline.studies.peers.resnet import ResNet
from pipeline.studies.peers.tabnet import TabNet
from pipeline.studies.peers.vit import ViT

TOLERANCE = 0.05
"""The largest share by which a peer's number of parameters may differ."""
HEADS, MLP_RATIO = 4, 2
_SMALL = 2_000_000
"""Up to so many parameters, peers are shallow. Larger ones are those of ImageNet."""


@dataclass(frozen=True)
class Images:
    """The images that a peer reads.

    Attributes:
        channels: The channels of a pixel, features of its position included.
        height: The rows of pixels.
        width: The columns of pixels.
        num_classes: The number of classes.
    """

    channels: int
    height: int
    width: int
    num_classes: int


@dataclass(frozen=True)
class Rows:
    """The rows of a table that a peer reads.

    Attributes:
        features: The numbers of a row.
        num_classes: The number of classes.
    """

    features: int
    num_classes: int


@dataclass(frozen=True)
class Points:
    """The clouds that a peer reads.

    Attributes:
        num_points: The most points of a cloud.
        num_classes: The number of classes.
    """

    num_points: int
    num_classes: int


def sized_peer(name: str, shape: Images | Rows | Points, num_parameters: int) -> nn.Module:
    """Return the peer whose number of parameters is nearest to the one wanted, with new weights.

    Raises:
        UserError: None comes within 5 %.
    """
    return nearest_in_size(name, *PEERS[name](shape, num_parameters), num_parameters)


def nearest_in_size(
    name: str,
    widths: Iterable[int],
    second: Callable[[int], int],
    build: Callable[[int, int], nn.Module],
    num_parameters: int,
) -> nn.Module:
    """Return the model whose number of parameters is nearest to the one wanted, with new weights.

    Args:
        name: What messages call it.
        widths: The widths that are tried.
        second: Returns the usual second width for a width.
        build: Returns a model of both widths.
        num_parameters: The number wanted.

    Raises:
        UserError: None comes within 5 %.
    """

    def size(width: int, other: int) -> int:
        with torch.device("meta"):
            return count_parameters(build(width, other))

    def apart(width: int, other: int) -> int:
        return abs(size(width, other) - num_parameters)

    width = min(widths, key=lambda each: apart(each, second(each)))
    others = range(1, 4 * second(width))
    above = bisect_left(others, num_parameters, key=lambda other: size(width, other))
    near = [others[index] for index in (above - 1, above) if 0 <= index < len(others)]
    other = min(near, key=lambda each: apart(width, each))
    if apart(width, other) > TOLERANCE * num_parameters:
        raise UserError(
            f"no {name} has {num_parameters} parameters within {TOLERANCE:.0%}; the nearest has "
            f"{size(width, other)}: change the Perceiver's size"
        )
    return build(width, other)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


Builder = tuple[Iterable[int], Callable[[int], int], Callable[[int, int], nn.Module]]
"""The widths that are tried, the usual second width for a width, and what builds a model of both.

The width is that with which the usual model comes nearest; the second width does the rest.
"""


_DIMS = (*range(16, 128, HEADS), *range(128, 769, 32))


def _resnets(images: Images, num_parameters: int) -> Builder:
    depth, stem_stride = (1, 1) if num_parameters <= _SMALL else (3, 4)

    def build(width: int, last_width: int) -> nn.Module:
        return ResNet(images.channels, images.num_classes, width, last_width, depth, stem_stride)

    return (*range(4, 64, 2), *range(64, 513, 16)), lambda width: 4 * width, build


def _vits(images: Images, num_parameters: int) -> Builder:
    patch, depth = (4, 2) if num_parameters <= _SMALL else (16, 12)
    if images.height % patch or images.width % patch:
        raise UserError(f"the ViT reads patches of {patch} × {patch} pixels; give images they tile")
    grid = (images.height // patch, images.width // patch)

    def build(dim: int, hidden: int) -> nn.Module:
        return ViT(images.channels, images.num_classes, grid, patch, dim, hidden, depth, HEADS)

    return _DIMS, lambda dim: MLP_RATIO * dim, build


def _transformers(images: Images, num_parameters: int) -> Builder:
    """A token for each pixel. Positions are channels of the pixels, as the Perceiver has them."""
    depth = 2 if num_parameters <= _SMALL else 12

    def build(dim: int, hidden: int) -> nn.Module:
        grid = (images.height, images.width)
        shape = (images.channels, images.num_classes, grid, 1, dim, hidden, depth, HEADS)
        return ViT(*shape, learned_positions=False)

    return _DIMS, lambda dim: MLP_RATIO * dim, build


def _performers(images: Images, num_parameters: int) -> Builder:
    depth = 2 if num_parameters <= _SMALL else 12

    def build(dim: int, hidden: int) -> nn.Module:
        return Performer(images.channels, images.num_classes, dim, hidden, depth, HEADS)

    return _DIMS, lambda dim: MLP_RATIO * dim, build


def _set_transformers(images: Images, num_parameters: int) -> Builder:
    depth, points = (2, 32) if num_parameters <= _SMALL else (6, 128)

    def build(dim: int, hidden: int) -> nn.Module:
        shape = (images.channels, images.num_classes, dim, hidden, depth, HEADS)
        return SetTransformer(*shape, num_inducing=points)

    return _DIMS, lambda dim: dim, build


def _tabnets(rows: Rows, num_parameters: int) -> Builder:
    def build(decision_dim: int, attention_dim: int) -> nn.Module:
        return TabNet(rows.features, rows.num_classes, decision_dim, attention_dim)

    return range(2, 129), lambda dim: dim, build


def _pointnets(clouds: Points, num_parameters: int) -> Builder:
    """The paper's levels for clouds of 1024 points and more; wider ones for clouds of fewer."""
    if clouds.num_points >= 1024:
        levels = (Level(512, 0.2, 32), Level(128, 0.4, 64))
    else:
        kept = max(clouds.num_points // 2, 1), max(clouds.num_points // 8, 1)
        levels = (Level(kept[0], 0.3, 16), Level(kept[1], 0.6, 16))
    dropout = 0.0 if num_parameters <= _SMALL else 0.5

    def build(width: int, last_width: int) -> nn.Module:
        return PointNet(clouds.num_classes, width, last_width, levels, dropout)

    return (*range(4, 64, 2), *range(64, 513, 16)), lambda width: 16 * width, build


PEERS: dict[str, Callable[[Any, int], Builder]] = {
    "resnet": _resnets,
    "vit": _vits,
    "transformer": _transformers,
    "performer": _performers,
    "set-transformer": _set_transformers,
    "tabnet": _tabnets,
    "pointnet++": _pointnets,
}
"""What returns the builder of a peer for the shape of its inputs and a number of parameters."""
