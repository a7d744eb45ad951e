"""The peers by name, each built with as many parameters as a Perceiver has."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.studies.peers.resnet import ResNet
from pipeline.studies.peers.vit import ViT

TOLERANCE = 0.05
"""The largest share by which a peer's number of parameters may differ."""
HEADS, MLP_RATIO = 4, 2
_SMALL_SIDE = 64
"""Images of at most so many rows get shallow peers, and others those of ImageNet."""


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


def sized_peer(name: str, images: Images, num_parameters: int) -> nn.Module:
    """Return the peer whose number of parameters is nearest to the one wanted, with new weights.

    Raises:
        UserError: None comes within 5 %.
    """
    build, settings = PEERS[name](images)
    with torch.device("meta"):
        sizes = {each: count_parameters(build(*each)) for each in settings}
    best = min(sizes, key=lambda each: abs(sizes[each] - num_parameters))
    if abs(sizes[best] - num_parameters) > TOLERANCE * num_parameters:
        raise UserError(
            f"no {name} has {num_parameters} parameters within {TOLERANCE:.0%}; the nearest has "
            f"{sizes[best]}: change the Perceiver's size"
        )
    return build(*best)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


Settings = tuple[int, int]
Builder = tuple[Callable[[int, int], nn.Module], Iterable[Settings]]


def _resnets(images: Images) -> Builder:
    depth = 1 if images.height <= _SMALL_SIDE else 3

    def build(width: int, last_width: int) -> nn.Module:
        return ResNet(
            images.channels, images.num_classes, width, last_width, depth, 4 if depth > 1 else 1
        )

    widths = (4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384)
    # The last stage has about twice the channels of the second, as in the paper.
    return build, [(w, 4 * w * share // 16) for w, share in product(widths, range(12, 22))]


def _vits(images: Images) -> Builder:
    patch, depth = (4, 2) if images.height <= _SMALL_SIDE else (16, 12)
    if images.height % patch or images.width % patch:
        raise UserError(
            f"the ViT reads patches of {patch} × {patch} pixels, which must tile images"
        )
    grid = (images.height // patch, images.width // patch)

    def build(dim: int, hidden: int) -> nn.Module:
        return ViT(images.channels, images.num_classes, grid, patch, dim, hidden, depth, HEADS)

    dims = (16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384, 512, 768)
    return build, [
        (dim, MLP_RATIO * dim * share // 16) for dim, share in product(dims, range(10, 26))
    ]


PEERS: dict[str, Callable[[Images], Builder]] = {"resnet": _resnets, "vit": _vits}
