"""The configuration of a Perceiver classifier. It does not import torch."""

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

InputConfig = MediaInput | MultimodalInput
"""The input of one or several modalities."""
AdapterConfig = MediaAdapter | PaddedModalities
"""The adapter of one or several modalities."""


@config_dataclass
class ClassifierConfig(TokensConfig):
    """A classifier: input → adapter → [content | positions] → encoder → logits.

    Attributes:
        input: The configuration of the input.
        adapter: The configuration of the adapter, which must be able to read the input.
        positions: The position features of the token grid. None if the adapter's content already
            contains the positions.
        encoder: The configuration of the encoder.
        decoder: None takes the mean over the latents, followed by a linear layer (paper). A decoder
            reads the latents with one learned query of `latent_dim` channels (IO).
        num_classes: The number of classes, at least 1.
    """

    input: InputConfig
    adapter: AdapterConfig
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig | None = None
    num_classes: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cross_heads(self.encoder, self.input_channels)
        check_maps_are_read(self.encoder, self.adapter)
        if self.decoder:
            check_decoder_heads(self.decoder, self.encoder)

    @property
    def cross_channels(self) -> int:
        """The width of the queries and keys in a cross-attend."""
        return self.encoder.cross_channels or self.input_channels
