"""How a Perceiver classifier is built: a frozen dataclass, checked once, free of torch."""

from dataclasses import dataclass

from perceiver_model.adapters.configs import MediaAdapter, MediaInput
from perceiver_model.adapters.multimodal_config import MultimodalInput, PaddedModalities
from perceiver_model.config import DecoderConfig, EncoderConfig
from perceiver_model.config_checks import check_positive_integers
from perceiver_model.tokens_config import (
    TokensConfig,
    check_cross_heads,
    check_decoder_heads,
)

InputConfig = MediaInput | MultimodalInput
AdapterConfig = MediaAdapter | PaddedModalities


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TokensConfig):
    """A whole classifier: input → adapter → [content | positions] → encoder → logits.

    Attributes:
        positions: of the token grid; None if the adapter's content holds them.
        decoder: None takes the mean over the latents and a linear layer (paper); a decoder reads
            the latents with one learned query of `latent_dim` channels (IO).
    """

    input: InputConfig
    adapter: AdapterConfig
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig | None = None
    num_classes: int

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_classes")
        super().__post_init__()
        check_cross_heads(self.encoder, self.input_channels)
        if self.decoder:
            check_decoder_heads(self.decoder, self.encoder)

    @property
    def cross_channels(self) -> int:
        """Width of queries and keys in a cross-attend."""
        return self.encoder.cross_channels or self.input_channels
