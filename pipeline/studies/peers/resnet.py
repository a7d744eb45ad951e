"""A small residual network (He et al., arXiv 1512.03385) for images of any number of channels."""

import torch
from torch import nn


class ResNet(nn.Module):
    """A 3 × 3 stem, three stages of basic blocks, the mean over places, and a linear layer.

    The second and third stage halve the grid.

    Args:
        channels: The channels of a pixel.
        num_classes: The number of classes.
        width: The channels of the first stage; the second has twice as many.
        last_width: The channels of the third stage.
        depth: The blocks of each stage.
        stem_stride: The stride of the stem.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        width: int,
        last_width: int,
        depth: int = 1,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.stem = _convolution(channels, width, 3, stem_stride)
        blocks, before = [], width
        for after, stride in ((width, 1), (2 * width, 2), (last_width, 2)):
            for number in range(depth):
                blocks.append(BasicBlock(before, after, 1 if number else stride))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(last_width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits `[batch, classes]` of images `[batch, channels, height, width]`."""
        maps: torch.Tensor = self.blocks(self.stem(images).relu())
        logits: torch.Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with batch normalisation beside a shortcut.

    Args:
        channels: The channels of the input.
        width: The channels of the output.
        stride: The stride of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels, width, 3, stride)
        self.second = _convolution(width, width, 3, 1)
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else _convolution(channels, width, 1, stride)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps `[batch, width, height, width]` of the block."""
        changed: torch.Tensor = self.second(self.first(maps).relu())
        return (changed + self.shortcut(maps)).relu()


def _convolution(channels: int, width: int, size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(width),
    )
