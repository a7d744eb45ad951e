"""The Perceiver classifier: adapter, position features, encoder, mean over latents, linear."""

import math

import torch
from torch import nn

from perceiver_model.adapters import build_adapter
from perceiver_model.attention import linear
from perceiver_model.config import ClassifierConfig
from perceiver_model.fourier import position_table
from perceiver_model.perceiver import PerceiverEncoder


class PerceiverClassifier(nn.Module):
    """Logits for images or sound (paper, section 3 and 4.1).

    positions: the table of the tokens' Fourier features, floating `[tokens, position_channels]`,
        as `position_table` gives; computed if None. It is not part of the state dict.

    Raises ValueError for a table of another shape.
    """

    positions: torch.Tensor

    def __init__(self, config: ClassifierConfig, positions: torch.Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        if positions is None:
            num_bands = config.fourier.num_bands
            positions = position_table(config.token_grid, num_bands, config.max_resolution)
        shape = (math.prod(config.token_grid), config.position_channels)
        if positions.shape != shape:
            raise ValueError(
                f"positions of shape {list(positions.shape)}: expected [tokens, position_channels] "
                f"= {list(shape)} for the token grid {config.token_grid}"
            )
        self.register_buffer("positions", positions.float(), persistent=False)
        self.adapter = build_adapter(config)
        self.encoder = PerceiverEncoder(config.encoder, input_channels=config.input_channels)
        self.head = linear(config.encoder.latent_dim, config.num_classes)

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits, float32 `[batch, num_classes]`.

        inputs: images `[batch, height, width, channels]`, uint8 or floating in [0, 1], or sound
            `[batch, num_samples]`, int16 or floating in [-1, 1].
        mask: bool, the inputs' shape without channels, True where they are valid; None for
            everywhere, which is faster. A sample without any valid input gets its logits from the
            latents alone.

        Raises ValueError for inputs or masks of another shape or dtype.
        """
        content, token_mask = self.adapter(inputs, mask)
        # Casts of the whole module reach the buffer as they reach the parameters.
        content = content.to(self.positions.dtype)
        positions = self.positions.expand(content.shape[0], -1, -1)
        latents = self.encoder(torch.cat([content, positions], dim=-1), token_mask)
        return self.head(latents.mean(dim=1)).float()
