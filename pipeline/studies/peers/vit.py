"""Transformers over patches or pixels (Dosovitskiy et al., arXiv 2010.11929), of torch's layers."""

import torch
from torch import nn


class ViT(nn.Module):
    """Patches, learned positions, torch's encoder layers, the mean over patches, a linear layer.

    Args:
        channels: The channels of a pixel.
        num_classes: The number of classes.
        grid: The numbers of patches along the height and the width.
        patch_size: The side of a patch in pixels.
        dim: The channels of a patch's token, a multiple of `heads`.
        hidden: The hidden width of the MLPs.
        depth: The number of layers.
        heads: The number of attention heads.
        learned_positions: Whether a vector is learned for each patch. Otherwise the model knows
            positions only if the pixels hold them.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        grid: tuple[int, int],
        patch_size: int,
        dim: int,
        hidden: int,
        depth: int,
        heads: int,
        learned_positions: bool = True,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.positions = None
        if learned_positions:
            self.positions = nn.Parameter(0.02 * torch.randn(1, grid[0] * grid[1], dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, depth, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.head = nn.Linear(dim, num_classes)
        for parameter in self.layers.parameters():  # the layers are copies of one another
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits `[batch, classes]` of images `[batch, channels, height, width]`."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        if self.positions is not None:
            tokens = tokens + self.positions
        logits: torch.Tensor = self.head(self.layers(tokens).mean(dim=1))
        return logits
