"""The feature maps of a backbone as the tokens of successive cross-attends."""

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.adapters.backbone_config import BackboneConfig
from perceiver_model.adapters.backbone_module import build_module, load_weights_file, maps_of
from perceiver_model.adapters.checks import Tokens
from perceiver_model.adapters.image import ImageStandardiser
from perceiver_model.adapters.image_config import ImageInput
from perceiver_model.attention.multi_head import linear


class BackboneAdapter(nn.Module):
    """A user's torch module, and a linear layer for each of its feature maps.

    A frozen module stays in evaluation mode and gets no gradients. A trained one keeps the running
    statistics of its batch norms, as is usual in fine-tuning: statistics of one worker's part of a
    batch would depend on the number of workers. Parameters on which no map depends, such as those
    of a classifier after the last map, are not trained.

    Args:
        image: The configuration of the images.
        backbone: The configuration of the backbone. Its code runs here.

    Attributes:
        module: The module.
        grids: The rows and columns of each map.

    Raises:
        ValueError: The module cannot be built or gives no such maps, or the file does not hold its
            weights.
    """

    def __init__(self, image: ImageInput, backbone: BackboneConfig) -> None:
        super().__init__()
        self.frozen = backbone.frozen
        self.standardise = ImageStandardiser(image)
        module = build_module(backbone.module, backbone.arguments).eval()
        if backbone.weights is not None:
            load_weights_file(module, backbone.weights)
        shape = (image.channels, image.height, image.width)
        with torch.enable_grad():
            self._maps = maps_of(module, backbone.module, backbone.outputs, shape)
            _freeze(module, [] if self.frozen else self._maps.first)
        found = [tuple(each.shape) for each in self._maps.first]
        self._maps.first = []
        self.grids = tuple((rows, columns) for _, _, rows, columns in found)
        self.module = module.to(self.standardise.mean.bits.device)
        self.projections = nn.ModuleList(
            linear(channels, backbone.num_channels) for _, channels, _, _ in found
        )
        self.train()

    def train(self, mode: bool = True) -> "BackboneAdapter":
        """Set the mode, except of what is frozen and of modules with running statistics."""
        super().train(mode)
        self._maps.come_last()
        for module in [self.module] if self.frozen else self.module.modules():
            if self.frozen or getattr(module, "running_mean", None) is not None:
                module.eval()
        return self

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[Tokens, ...]:
        """Return the content `[batch, rows * columns, num_channels]` of each map, and its mask.

        A cell of a map is valid if any pixel in its part of the image is valid.

        Args:
            images: The images `[batch, height, width, channels]`, uint8 or floating point.
            mask: The valid pixels, bool `[batch, height, width]`, or None if all are valid.
        """
        standardised = self.standardise(images, mask).permute(0, 3, 1, 2)
        dtype = next(self.projections.parameters()).dtype
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self._maps.read(self.module(standardised.to(dtype)))
        return tuple(
            (project(cells.flatten(2).transpose(1, 2).to(dtype)), _cell_mask(mask, grid))
            for project, cells, grid in zip(self.projections, maps, self.grids, strict=True)
        )


def _freeze(module: nn.Module, maps: list[torch.Tensor]) -> None:
    """Freeze all parameters except those on which the maps depend."""
    parameters = [each for each in module.parameters() if each.requires_grad]
    trained = [each for each in maps if each.requires_grad]
    gradients: tuple[torch.Tensor | None, ...] = (None,) * len(parameters)
    if trained and parameters:
        total = torch.stack([each.sum() for each in trained]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def _cell_mask(mask: torch.Tensor | None, grid: tuple[int, ...]) -> torch.Tensor | None:
    """Return the mask of a map's cells, bool `[batch, rows * columns]`."""
    if mask is None:
        return None
    return F.adaptive_max_pool2d(mask.float().unsqueeze(1), grid).flatten(1) > 0
