"""Stages of residual blocks behind a convolutional front end."""

import torch
from torch import nn

from perceiver_model.adapters.residual_config import KERNEL

GROUP_CHANNELS = 16
"""The number of channels that are normalised together."""


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, each after normalisation and GELU, added to their input.

    Each sample is normalised alone, in groups of channels. The second convolution begins
    with zeros, so a new block passes its input on unchanged.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first_norm = group_norm(channels)
        self.first = nn.Conv2d(channels, channels, KERNEL, padding=1)
        self.second_norm = group_norm(channels)
        self.second = nn.Conv2d(channels, channels, KERNEL, padding=1)
        self.activation = nn.GELU(approximate="tanh")
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape, `[batch, channels, height, width]`."""
        inner = self.first(self.activation(self.first_norm(features)))
        inner = self.second(self.activation(self.second_norm(inner)))
        return features + inner


class ResidualStages(nn.Sequential):
    """Stages of residual blocks, as an adapter's field `stages` says.

    Every stage but the first halves the grid and doubles the channels.

    Args:
        channels: The channels before the first stage.
        stages: The number of residual blocks of each stage. Empty changes nothing.
    """

    def __init__(self, channels: int, stages: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        for number, blocks in enumerate(stages):
            if number:
                layers += [halving_pool(), nn.Conv2d(channels, 2 * channels, kernel_size=1)]
                channels *= 2
            layers += [ResidualBlock(channels) for _ in range(blocks)]
        if layers:
            layers.append(group_norm(channels))
        super().__init__(*layers)
        self.num_halvings = max(0, len(stages) - 1)

    def token_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Return which cells are valid after the stages: those with a valid one in their window.

        Args:
            mask: The valid cells before them, bool `[batch, height, width]`.
        """
        valid = mask.float().unsqueeze(1)
        for _ in range(self.num_halvings):
            valid = halving_pool()(valid)
        return valid.squeeze(1) > 0


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a normalisation of groups of `GROUP_CHANNELS` channels, or of all as one group."""
    groups = channels // GROUP_CHANNELS if channels % GROUP_CHANNELS == 0 else 1
    return nn.GroupNorm(groups, channels)


def halving_pool() -> nn.MaxPool2d:
    """Return a 2×2 max-pool that rounds the sizes up."""
    return nn.MaxPool2d(kernel_size=2, ceil_mode=True)
