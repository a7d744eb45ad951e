"""The feature maps of a user's backbone as tokens."""

import torch
from torch import nn

from perceiver_model.adapters.checks import Tokens, check_inputs
from perceiver_model.adapters.configs import FeatureMapInput


class FeatureMapAdapter(nn.Module):
    """One token per cell of the map: its channels in their own dtype, without normalisation.

    Gradients flow through to the backbone, except at masked cells.
    """

    def __init__(self, features: FeatureMapInput) -> None:
        super().__init__()
        self.shape = (*features.grid, features.channels)

    def forward(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, height * width, channels]` and the token mask.

        Args:
            features: The maps, floating point `[batch, height, width, channels]`. If a backbone
                returns `[batch, channels, height, width]`, use `permute(0, 2, 3, 1)`.
            mask: The valid cells, bool `[batch, height, width]`, or None if all are valid.
        """
        check_inputs(features, mask, self.shape)
        if mask is None:
            return features.flatten(1, 2), None
        return features.masked_fill(~mask.unsqueeze(-1), 0.0).flatten(1, 2), mask.flatten(1)
