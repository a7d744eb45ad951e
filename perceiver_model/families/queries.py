"""A model with a fixed number of outputs, one learned query for each (IO, section 3.2)."""

import torch

from perceiver_model.adapters.build import Inputs, Masks
from perceiver_model.decoder import PerceiverDecoder
from perceiver_model.families.queries_config import QueriesConfig
from perceiver_model.families.tokens_model import TokensModel
from perceiver_model.output_queries import LearnedQueries


class QueryPredictor(TokensModel):
    """A model with numbered outputs: the numbers of a regression, or positions of a sequence.

    Args:
        config: The configuration of the model.
        positions: The table of the tokens' Fourier features, as in `PerceiverClassifier`.
    """

    config: QueriesConfig

    def __init__(self, config: QueriesConfig, positions: torch.Tensor | None = None) -> None:
        super().__init__(config, config.encoder, positions)
        self.queries = LearnedQueries(config.num_queries, config.query_width)
        self.decoder = PerceiverDecoder(
            config.decoder,
            query_channels=config.query_width,
            latent_dim=config.encoder.latent_dim,
            output_channels=config.output_channels,
        )

    def forward(
        self,
        inputs: Inputs,
        mask: Masks | None = None,
        *,
        num_outputs: int | None = None,
        state: torch.Tensor | None = None,
        starts: torch.Tensor | None = None,
        return_state: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs `[batch, num_outputs, output_channels]`.

        The outputs are float32, or float64 for a float64 model. With `return_state`, the latents
        `[batch, num_latents, latent_dim]` are returned, too: pass them as `state` with the next
        part of a stream.

        Args:
            inputs: The inputs, as in `PerceiverClassifier.forward`.
            mask: The valid inputs, as in `PerceiverClassifier.forward`.
            num_outputs: The number of outputs to decode, from the first one on. None decodes all.
            state: The latents to start from, as in `PerceiverClassifier.forward`.
            starts: Which samples begin a stream, as in `PerceiverClassifier.forward`.
            return_state: Whether to return the latents as well.

        Raises:
            ValueError: If a shape or a dtype is wrong, or there are fewer outputs.
        """
        total = self.config.num_queries
        count = total if num_outputs is None else num_outputs
        if not 1 <= count <= total:
            raise ValueError(f"num_outputs is {num_outputs}; must be from 1 to {total}")
        latents = self.encoder(self.input_array(inputs, mask), state, starts)
        queries = self.queries(torch.arange(count, device=latents.device))
        outputs = self.decoder(queries.to(latents.dtype), latents)
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        return (outputs, latents) if return_state else outputs
