"""The configuration of a model with a fixed number of outputs. It does not import torch."""

from perceiver_model.adapters.configs import MediaAdapter, MediaInput
from perceiver_model.adapters.multimodal_config import MultimodalInput, PaddedModalities
from perceiver_model.config import DecoderConfig, EncoderConfig
from perceiver_model.config_checks import Count, config_dataclass
from perceiver_model.tokens_config import (
    TokensConfig,
    check_cross_heads,
    check_decoder_heads,
    check_maps_are_read,
)


@config_dataclass
class QueriesConfig(TokensConfig):
    """A fixed number of outputs: input → tokens → encoder → decoder, a learned query for each.

    Attributes:
        input: The configuration of the input.
        adapter: The configuration of the adapter, which must be able to read the input.
        encoder: The configuration of the encoder.
        decoder: The configuration of the decoder.
        num_queries: The number of outputs: the numbers of a regression, or the positions of a
            sequence. At least 1.
        query_channels: The number of channels of a learned query. None means `latent_dim`.
        output_channels: The number of channels of every output: 1 for a number, or the vocabulary
            for a sequence. At least 1.
    """

    input: MediaInput | MultimodalInput
    adapter: MediaAdapter | PaddedModalities
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    num_queries: Count
    query_channels: Count | None = None
    output_channels: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cross_heads(self.encoder, self.input_channels)
        check_maps_are_read(self.encoder, self.adapter)
        check_decoder_heads(self.decoder, self.encoder)

    @property
    def query_width(self) -> int:
        """The number of channels of an output query."""
        return self.query_channels or self.encoder.latent_dim
