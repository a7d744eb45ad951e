"""Images as tokens: pixels, patches, or the output of a small convolutional front end."""

import torch
from torch import nn

from perceiver_model.adapters.checks import Tokens, check_inputs
from perceiver_model.adapters.configs import ConvConfig, ImageInput, PatchesConfig, VideoInput
from perceiver_model.adapters.residual import ResidualStages, halving_pool
from perceiver_model.constants import Float32Constant


class ImageStandardiser(nn.Module):
    """Standardise images or videos to float32 as `(image - mean) / std`."""

    def __init__(self, image: ImageInput | VideoInput) -> None:
        super().__init__()
        self.shape = (*image.grid, image.channels)
        self.mean = Float32Constant(torch.tensor(image.mean))
        self.std = Float32Constant(torch.tensor(image.std))

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the standardised images, float32, with invalid pixels set to zero.

        Args:
            images: The images `[batch, *grid, channels]`, uint8 or floating point.
            mask: The valid pixels, bool `[batch, *grid]`, or None if all are valid.

        Raises:
            ValueError: If a shape or a dtype is wrong.
        """
        check_inputs(images, mask, self.shape, torch.uint8)
        scale = 1.0 if images.is_floating_point() else 1 / 255
        standardised = (images.float() * scale - self.mean()) / self.std()
        if mask is None:
            return standardised
        return standardised.masked_fill(~mask.unsqueeze(-1), 0.0)


class PixelAdapter(nn.Module):
    """One token per pixel, which holds the channels of the pixel."""

    def __init__(self, image: ImageInput) -> None:
        super().__init__()
        self.standardise = ImageStandardiser(image)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, height * width, channels]` and the token mask.

        Args:
            images: The images `[batch, height, width, channels]`, uint8 or floating point.
            mask: The valid pixels, bool `[batch, height, width]`, or None if all are valid.
        """
        content = self.standardise(images, mask).flatten(1, 2)
        return content, None if mask is None else mask.flatten(1)


class PatchAdapter(nn.Module):
    """One token per square patch: its pixels in the order (row, column, channel)."""

    def __init__(self, image: ImageInput, patches: PatchesConfig) -> None:
        super().__init__()
        self.standardise = ImageStandardiser(image)
        self.patch_size = patches.patch_size

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, patches, patch_size * patch_size * channels]` and its mask.

        Args:
            images: The images `[batch, height, width, channels]`, uint8 or floating point.
            mask: The valid pixels, bool `[batch, height, width]`, or None if all are valid.
        """
        content = self._patches(self.standardise(images, mask))
        return content, None if mask is None else self._patches(mask.unsqueeze(-1)).any(dim=-1)

    def _patches(self, images: torch.Tensor) -> torch.Tensor:
        """Reshape `[batch, height, width, channels]` to `[batch, patches, pixels * channels]`."""
        batch, height, width, channels = images.shape
        size = self.patch_size
        grid = images.view(batch, height // size, size, width // size, size, channels)
        return grid.transpose(2, 3).flatten(3).flatten(1, 2)


class ConvTokens(nn.Module):
    """A 5×5 convolution, normalisation, GELU, a 2×2 max-pool, a 3×3 convolution, and the stages.

    Each sample is normalised alone (GroupNorm), never over the batch. A data-parallel step
    therefore equals the same step on the whole batch.

    Args:
        in_channels: The channels of the input.
        num_channels: The channels of both convolutions.
        stages: The number of residual blocks of each stage.
    """

    def __init__(self, in_channels: int, num_channels: int, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, num_channels, kernel_size=5, padding=2)
        self.norm = nn.GroupNorm(1, num_channels)
        self.activation = nn.GELU(approximate="tanh")
        self.pool = halving_pool()
        self.mix = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)
        self.stages = ResidualStages(num_channels, stages)

    def tokens(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> Tokens:
        """Return the content `[batch, tokens, channels]` and the token mask.

        Args:
            inputs: The standardised inputs, float32 `[batch, in_channels, height, width]`.
            mask: The valid cells, bool `[batch, height, width]`, or None if all are valid.
        """
        features = self.stem(inputs.to(self.stem.weight.dtype))
        features = self.stages(self.mix(self.pool(self.activation(self.norm(features)))))
        content = features.flatten(2).transpose(1, 2)
        if mask is None:
            return content, None
        pooled = self.pool(mask.float().unsqueeze(1)).squeeze(1) > 0
        return content, self.stages.token_mask(pooled).flatten(1)


class ConvAdapter(ConvTokens):
    """The tokens of an image, from a small convolutional front end."""

    def __init__(self, image: ImageInput, conv: ConvConfig) -> None:
        super().__init__(image.channels, conv.num_channels, conv.stages)
        self.standardise = ImageStandardiser(image)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, tokens, channels]` and the token mask.

        `ConvConfig.token_grid` and `content_channels` say how many there are.

        Args:
            images: The images `[batch, height, width, channels]`, uint8 or floating point.
            mask: The valid pixels, bool `[batch, height, width]`, or None if all are valid.
        """
        return self.tokens(self.standardise(images, mask).permute(0, 3, 1, 2), mask)
