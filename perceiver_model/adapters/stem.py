"""The convolutional stem of Perceiver IO's image classifier, and a projection of tokens."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.adapters.checks import Tokens
from perceiver_model.adapters.configs import ConvStemConfig, ImageInput
from perceiver_model.adapters.image import ImageStandardiser
from perceiver_model.attention.multi_head import linear

CONV_KERNEL, POOL_KERNEL, STRIDE = 7, 3, 2


class ConvStemAdapter(nn.Module):
    """A 7×7 convolution, normalisation, ReLU and a 3×3 max-pool (IO, section 4.5).

    The convolution and the pooling each have stride 2. Batch normalisation computes its statistics
    from the batch of this process, so a data-parallel step differs from a step on the whole batch.
    It keeps its running statistics for evaluation as buffers in the state dict. With
    `norm="group"`, each sample is normalised alone and there are no such buffers.
    """

    def __init__(self, image: ImageInput, stem: ConvStemConfig) -> None:
        super().__init__()
        self.standardise = ImageStandardiser(image)
        self.conv = nn.Conv2d(
            image.channels, stem.num_channels, CONV_KERNEL, stride=STRIDE, bias=False
        )
        std = (image.channels * CONV_KERNEL**2) ** -0.5
        nn.init.trunc_normal_(self.conv.weight, std=std, a=-2 * std, b=2 * std)
        self.norm = (
            nn.BatchNorm2d(stem.num_channels)
            if stem.norm == "batch"
            else nn.GroupNorm(1, stem.num_channels)
        )
        same = stem.padding == "same"
        halved = math.ceil(image.height / 2), math.ceil(image.width / 2)
        # F.pad takes left, right, top, bottom.
        self.conv_padding = (
            same_padding(image.width, CONV_KERNEL) + same_padding(image.height, CONV_KERNEL)
            if same
            else (CONV_KERNEL // 2,) * 4
        )
        self.pool_padding = (
            same_padding(halved[1], POOL_KERNEL) + same_padding(halved[0], POOL_KERNEL)
            if same
            else (0,) * 4
        )

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, tokens, num_channels]` and the token mask.

        A token is valid if any pixel in its window is valid.

        Args:
            images: The images `[batch, height, width, channels]`, uint8 or floating point.
            mask: The valid pixels, bool `[batch, height, width]`, or None if all are valid.
        """
        standardised = self.standardise(images, mask).permute(0, 3, 1, 2)
        standardised = standardised.to(self.conv.weight.dtype)
        features = self.conv(F.pad(standardised, self.conv_padding))
        features = self._pool(F.relu(self.norm(features)))
        content = features.flatten(2).transpose(1, 2)
        if mask is None:
            return content, None
        seen = F.pad(mask.float().unsqueeze(1), self.conv_padding)
        seen = self._pool(F.max_pool2d(seen, CONV_KERNEL, STRIDE))
        return content, seen.flatten(1) > 0

    def _pool(self, features: torch.Tensor) -> torch.Tensor:
        """Max-pool features that are never negative, so padding with zeros is safe."""
        return F.max_pool2d(F.pad(features, self.pool_padding), POOL_KERNEL, STRIDE)


def same_padding(size: int, kernel: int, stride: int = STRIDE) -> tuple[int, int]:
    """Return the padding before and after for `ceil(size / stride)` outputs, as SAME does.

    This is the SAME padding of TensorFlow and Haiku. If the total is odd, it adds one more after
    than before. Symmetric padding would move the outputs by a pixel: 224 pixels with a kernel of 7
    get 2 before and 3 after.

    Args:
        size: The number of pixels along an axis.
        kernel: The width of the kernel in pixels.
        stride: The stride in pixels.
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class ProjectedAdapter(nn.Module):
    """An adapter followed by a linear layer on the content of its tokens.

    Args:
        adapter: The adapter.
        in_channels: The channels of its tokens.
        out_channels: The channels of the result.
    """

    def __init__(self, adapter: nn.Module, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.adapter = adapter
        self.project = linear(in_channels, out_channels)

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, tokens, out_channels]`, in the layer's dtype, and the mask.

        Args:
            inputs: The inputs of the adapter.
            mask: The mask of the inputs.
        """
        content, token_mask = self.adapter(inputs, mask)
        return self.project(content.to(self.project.weight.dtype)), token_mask
