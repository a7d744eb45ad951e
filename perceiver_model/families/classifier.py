"""The Perceiver classifier: adapter, positions, encoder, and the head of the paper or of IO."""

import torch
from torch import nn

from perceiver_model.adapters.build import Inputs, Masks, build_adapter
from perceiver_model.attention.multi_head import linear
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import DecoderConfig
from perceiver_model.decoder import PerceiverDecoder
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.perceiver import PerceiverEncoder
from perceiver_model.positions import build_positions


class PerceiverClassifier(nn.Module):
    """Logits for images or sound (paper, section 3 and 4.1; IO, section 4.5).

    Args:
        positions: the table of the tokens' Fourier features, floating `[tokens,
            position_channels]`, as `position_table` gives; computed if None. It is not part of the
            state dict.

    Raises ValueError for a table that is not of the configuration's token grid.
    """

    def __init__(self, config: ClassifierConfig, positions: torch.Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.positions = build_positions(
            config.positions, config.token_grid, config.max_resolution, positions
        )
        self.adapter = build_adapter(config)
        self.encoder = PerceiverEncoder(config.encoder, input_channels=config.input_channels)
        if config.decoder is None:
            self.head: nn.Module = MeanHead(config.encoder.latent_dim, config.num_classes)
        else:
            self.head = QueryHead(config.decoder, config.encoder.latent_dim, config.num_classes)

    def input_array(self, inputs: Inputs, mask: Masks | None = None) -> InputArray:
        """The tokens that the encoder reads; arguments as of `forward`."""
        content, token_mask = self.adapter(inputs, mask)
        return InputArray(content.to(self.encoder.latents.dtype), self.positions(), token_mask)

    def forward(
        self,
        inputs: Inputs,
        mask: Masks | None = None,
        *,
        state: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits `[batch, num_classes]`, float32 or, of a float64 model, float64.

        Args:
            inputs: as the configuration's input describes them, such as images `[batch, height,
                width, channels]`, uint8 or floating in [0, 1], sound `[batch, num_samples]`, int16
                or floating in [-1, 1], or the rows of a table as `TableRows`; of several
                modalities, a mapping from their names.
            mask: bool, the inputs' shape without channels (`[batch, columns]` of tables, and
                `[batch, frames]` of videos, too), True where they are valid; None for everywhere,
                which is faster. A sample without any valid input gets its logits from the latents
                alone. Of several modalities, a mapping from some of their names.
            state: latents to start from, as `forward_state` returned them for what came before.

        Raises ValueError for inputs or masks of another shape or dtype.
        """
        return self.forward_state(inputs, mask, state=state)[0]

    def forward_state(
        self,
        inputs: Inputs,
        mask: Masks | None = None,
        *,
        state: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits, and the latents `[batch, num_latents, latent_dim]` after these inputs.

        Given back as `state` with the next inputs, they carry what was read: a stream, such as
        sound chunk by chunk, is classified with constant memory.
        """
        latents = self.encoder(self.input_array(inputs, mask), state)
        logits = self.head(latents)
        return (logits if logits.dtype == torch.float64 else logits.float()), latents


class MeanHead(nn.Module):
    """The mean over the latents, then a linear layer (paper, section 3.1)."""

    def __init__(self, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        self.output = linear(latent_dim, num_classes)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """`[batch, num_latents, latent_dim]` to `[batch, num_classes]`."""
        return self.output(latents.mean(dim=1))


class QueryHead(nn.Module):
    """One learned output query that reads the latents (IO, section 3.2)."""

    def __init__(self, config: DecoderConfig, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, latent_dim))
        nn.init.trunc_normal_(self.query, std=0.02, a=-2.0, b=2.0)
        self.decoder = PerceiverDecoder(
            config, query_channels=latent_dim, latent_dim=latent_dim, output_channels=num_classes
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """`[batch, num_latents, latent_dim]` to `[batch, num_classes]`."""
        return self.decoder(self.query.unsqueeze(0), latents).squeeze(1)
