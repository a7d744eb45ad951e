"""The Perceiver classifier: adapter, positions, encoder, and the head of the paper or of IO."""

import torch
from torch import nn

from perceiver_model.adapters.build import Inputs, Masks
from perceiver_model.attention.multi_head import linear
from perceiver_model.config import DecoderConfig
from perceiver_model.decoder import PerceiverDecoder
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.tokens_model import TokensModel


class PerceiverClassifier(TokensModel):
    """A classifier of any input (paper, sections 3 and 4.1; IO, section 4.5).

    Args:
        config: The configuration of the model.
        positions: The table of the tokens' Fourier features, floating point
            `[tokens, position_channels]`, as `position_table` returns. None computes it. It is not
            part of the state dict.

    Raises:
        ValueError: If the table does not fit the token grid of the configuration.
    """

    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig, positions: torch.Tensor | None = None) -> None:
        super().__init__(config, config.encoder, positions)
        if config.decoder is None:
            self.head: nn.Module = MeanHead(config.encoder.latent_dim, config.num_classes)
        else:
            self.head = QueryHead(config.decoder, config.encoder.latent_dim, config.num_classes)

    def forward(
        self,
        inputs: Inputs,
        mask: Masks | None = None,
        *,
        state: torch.Tensor | None = None,
        starts: torch.Tensor | None = None,
        return_state: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the logits `[batch, num_classes]`, with the latents if `return_state` is set.

        The logits are float32, or float64 for a float64 model.

        Args:
            inputs: The inputs, as the configuration describes them. Examples are images
                `[batch, height, width, channels]`, uint8, or floating point in [0, 1]; sound
                `[batch, num_samples]`, int16, or floating point in [-1, 1]; or table rows as
                `TableRows`. Several modalities are a mapping from their names to their inputs.
            mask: The valid inputs, bool, in the shape of the inputs without channels. Tables take
                `[batch, columns]`, and videos also `[batch, frames]`. None means that all are
                valid, which is faster. A sample without any valid input gets its logits from the
                latents alone. Several modalities take a mapping from some of their names to their
                masks.
            state: The latents to start from, as `forward_state` returned them for the previous part
                of a stream.
            starts: Which samples begin a stream, bool `[batch]`: they start from the learned
                latents, whatever `state` has for them. None means that none does.
            return_state: Whether to return what `forward_state` returns.

        Raises:
            ValueError: If a shape or a dtype is wrong.
        """
        logits, latents = self.forward_state(inputs, mask, state=state, starts=starts)
        return (logits, latents) if return_state else logits

    def forward_state(
        self,
        inputs: Inputs,
        mask: Masks | None = None,
        *,
        state: torch.Tensor | None = None,
        starts: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits, and the latents `[batch, num_latents, latent_dim]` after these inputs.

        Pass the latents as `state` with the next inputs. A stream, such as sound in chunks, is then
        classified with constant memory. The arguments are those of `forward`.
        """
        latents = self.encoder(self.input_array(inputs, mask), state, starts)
        logits = self.head(latents)
        return (logits if logits.dtype == torch.float64 else logits.float()), latents


class MeanHead(nn.Module):
    """The mean over the latents, followed by a linear layer (paper, section 3.1)."""

    def __init__(self, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        self.output = linear(latent_dim, num_classes)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn latents `[batch, num_latents, latent_dim]` into logits `[batch, num_classes]`."""
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
        """Turn latents `[batch, num_latents, latent_dim]` into logits `[batch, num_classes]`."""
        return self.decoder(self.query.unsqueeze(0), latents).squeeze(1)
