"""ResNet-50 (He et al., arXiv 1512.03385), with the names of torchvision: the shipped backbone."""

from typing import Any

import torch
from torch import nn


def convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)


class Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(before, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = convolution(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Identity()
            if before == 4 * width
            else nn.Sequential(convolution(before, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner = self.relu(self.bn1(self.conv1(features)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        return self.relu(self.bn3(self.conv3(inner)) + self.downsample(features))


class ResNet(nn.Module):
    def __init__(self, depths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 64, 7, 2), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        before = 64
        for number, depth in enumerate(depths):
            width, stride = 64 << number, 2 if number else 1
            blocks = [Bottleneck(before, width, stride)]
            blocks += [Bottleneck(4 * width, width, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
            before = 4 * width
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(before, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: Any = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for number in range(4):
            features = self.get_submodule(f"layer{number + 1}")(features)
        return self.fc(self.avgpool(features).flatten(1))


def resnet50(num_classes: int = 1000) -> ResNet:
    return ResNet((3, 4, 6, 3), num_classes)
