"""Residual networks whose feature maps a Perceiver reads, and the weights that they begin with.

Each returns the pixels and three maps by name, so that an arm chooses any of them.
"""

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import UserError
from pipeline.studies.peers.resnet import ResNet

PIXELS, EARLY, MIDDLE, LATE = "pixels", "early", "middle", "late"
_EPOCHS, _BATCH, _RATE = 20, 64, 3e-3


class Pretrained(Protocol):
    """A network that can get the weights of an earlier training."""

    def pretrain(self, seed: int, side: int, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Give it these weights.

        Args:
            seed: The seed of the earlier training, if it takes place here.
            side: The rows and columns of the images.
            mean: The mean of the channels that images are standardised with.
            std: Their standard deviation.

        Raises:
            UserError: The weights cannot be had.
        """


class DigitsResNet(nn.Module):
    """The small ResNet of the studies, pretrained on other people's digits.

    Args:
        width: The channels of the first map; the second has twice and the third four times as many.
        num_classes: The classes of the earlier training.
    """

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.net = ResNet(1, num_classes, width, 4 * width)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return maps `[batch, channels, rows, columns]` of images `[batch, 1, height, width]`."""
        maps = {PIXELS: images}
        cells = self.net.stem(images).relu()
        for name, stage in zip((EARLY, MIDDLE, LATE), self.net.blocks, strict=True):
            maps[name] = cells = stage(cells)
        return maps

    def pretrain(self, seed: int, side: int, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Train it on scikit-learn's 1,797 digits of 8 × 8 pixels, enlarged.

        Raises:
            UserError: scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError(
                "the study needs scikit-learn: pip install 'perceiver-pipeline[studies]'"
            ) from None
        digits = load_digits()
        small = torch.from_numpy(digits.images).float()[:, None] / 16
        large = F.interpolate(small, (side, side), mode="bilinear")
        images = (large - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        classes = torch.from_numpy(digits.target).long()
        optimizer = torch.optim.AdamW(self.parameters(), _RATE)
        steps = _EPOCHS * (len(images) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        order = torch.Generator().manual_seed(seed)
        self.train()
        for _ in range(_EPOCHS):
            chosen = torch.randperm(len(images), generator=order)
            for part in chosen[: len(images) // _BATCH * _BATCH].split(_BATCH):
                loss = F.cross_entropy(self.net(images[part]), classes[part])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        self.eval()


class ImageNetResNet(nn.Module):
    """A ResNet-50 of transformers, pretrained on ImageNet (`microsoft/resnet-50`)."""

    SOURCE = "microsoft/resnet-50"

    def __init__(self) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel

        self.net = ResNetModel(ResNetConfig())  # the default is a ResNet-50

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the pixels and the maps of the second, third and fourth stage.

        Args:
            images: float `[batch, 3, height, width]`.
        """
        maps = {PIXELS: images}
        first, *others = self.net.encoder.stages
        cells = first(self.net.embedder(images))
        for name, stage in zip((EARLY, MIDDLE, LATE), others, strict=True):
            maps[name] = cells = stage(cells)
        return maps

    def pretrain(self, seed: int, side: int, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Load the published weights.

        Raises:
            UserError: They cannot be fetched.
        """
        from transformers import ResNetModel

        try:
            loaded = ResNetModel.from_pretrained(self.SOURCE)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.SOURCE}: its weights cannot be fetched ({reason})") from None
        self.net.load_state_dict(loaded.state_dict())


def pretrain(module: nn.Module, seed: int, side: int, mean: Any, std: Any) -> None:
    """Give a network of this module the weights of its earlier training; see `Pretrained`."""
    channels = (torch.tensor(each, dtype=torch.float32).reshape(-1) for each in (mean, std))
    cast(Pretrained, module).pretrain(seed, side, *channels)


@torch.no_grad()
def calibrate(module: nn.Module, batches: list[torch.Tensor]) -> None:
    """Set the running statistics of all batch norms to the means over some batches.

    Args:
        module: The network with new weights.
        batches: Standardised images `[batch, channels, height, width]`.
    """
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches, each with the same weight
    module.train()
    for images in batches:
        module(images)
    module.eval()
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
