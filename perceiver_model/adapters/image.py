"""Images as tokens: pixels, patches, or the output of a small convolutional front end."""

import torch
from torch import nn

from perceiver_model.adapters.checks import Tokens, check_inputs
from perceiver_model.adapters.configs import ConvConfig, ImageInput, PatchesConfig, VideoInput
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


class ConvAdapter(nn.Module):
    """A 5×5 convolution, normalisation, GELU, a 2×2 max-pool and a 3×3 convolution.

    Each sample is normalised alone (GroupNorm with one group), never over the batch. A
    data-parallel step therefore equals the same step on the whole batch.
    """

    def __init__(self, image: ImageInput, conv: ConvConfig) -> None:
        super().__init__()
        self.standardise = ImageStandardiser(image)
        self.stem = nn.Conv2d(image.channels, conv.num_channels, kernel_size=5, padding=2)
        self.norm = nn.GroupNorm(1, conv.num_channels)
        self.activation = nn.GELU(approximate="tanh")
        self.pool = nn.MaxPool2d(kernel_size=2, ceil_mode=True)
        self.mix = nn.Conv2d(conv.num_channels, conv.num_channels, kernel_size=3, padding=1)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, tokens, num_channels]` and the token mask.

        There are `ceil(height / 2) * ceil(width / 2)` tokens.

        Args:
            images: The images `[batch, height, width, channels]`, uint8 or floating point.
            mask: The valid pixels, bool `[batch, height, width]`, or None if all are valid.
        """
        standardised = self.standardise(images, mask).permute(0, 3, 1, 2)
        features = self.stem(standardised.to(self.stem.weight.dtype))
        features = self.mix(self.pool(self.activation(self.norm(features))))
        content = features.flatten(2).transpose(1, 2)
        if mask is None:
            return content, None
        return content, self.pool(mask.float().unsqueeze(1)).flatten(1) > 0
