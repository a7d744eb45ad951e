"""A small residual network in the manner of ResNets, which tests use as a backbone."""

import itertools
from typing import Any

import torch
from torch import nn


class SmallNet(nn.Module):
    """Three stages, each of half the resolution, and a classifier that no feature map needs."""

    def __init__(self, channels: int = 1, width: int = 8, norm: str = "batch") -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(1, after),
                nn.ReLU(inplace=True),
            )
            for before, after in itertools.pairwise(widths)
        )
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            images = stage(images)
        return self.fc(images.mean(dim=(2, 3)))


class Pyramid(SmallNet):
    """The same, which returns its feature maps by name."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]  # another result
        maps = {}
        for number, stage in enumerate(self.stages):
            images = maps[f"c{number}"] = stage(images)
        return maps


class Levels(SmallNet):
    """The same, which returns a list."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]  # another result
        return list(Pyramid.forward(self, images).values())  # type: ignore[arg-type]  # a SmallNet


class Counting(SmallNet):
    """The same, which counts the images that it has seen."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += len(images)
        return super().forward(images)


class Tied(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.fc


class Precise(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.double()


def broken() -> nn.Module:
    raise RuntimeError("no such\nvariant")


def not_a_module() -> str:
    return "text"
