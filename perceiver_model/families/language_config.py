"""The configuration of a masked language model. It does not import torch."""

from perceiver_model.adapters.configs import TextInput, TokenEmbeddingConfig
from perceiver_model.config import DecoderConfig, EncoderConfig
from perceiver_model.config_checks import config_dataclass
from perceiver_model.config_tree import ConfigTree
from perceiver_model.tokens_config import check_cross_heads, check_decoder_heads


@config_dataclass
class LanguageConfig(ConfigTree):
    """A masked language model: text → embedding → encoder → a query per position → logits.

    The defaults are Perceiver IO's for UTF-8 bytes (IO, section 4.1 and appendix F): 2,048 tokens
    of 768 channels, 256 latents of 1,280 channels, 26 self-attends and 201,108,230 parameters. The
    output queries have the channels of the embedding, because the logits are products with its
    weights.

    Attributes:
        input: The configuration of the text.
        adapter: The configuration of the embedding.
        encoder: The configuration of the encoder.
        decoder: The configuration of the decoder.
    """

    input: TextInput = TextInput(max_length=2048)
    adapter: TokenEmbeddingConfig = TokenEmbeddingConfig(num_channels=768)
    encoder: EncoderConfig = EncoderConfig(
        num_latents=256,
        latent_dim=1280,
        num_blocks=1,
        num_cross_attends=1,
        num_self_attends=26,
        num_cross_heads=8,
        num_self_heads=8,
        cross_channels=256,
        cross_value_channels=1280,
        self_channels=256,
        self_value_channels=1280,
    )
    decoder: DecoderConfig = DecoderConfig(
        num_heads=8, qk_channels=256, value_channels=768, query_residual=False
    )

    def __post_init__(self) -> None:
        check_cross_heads(self.encoder, self.input_channels)
        check_decoder_heads(self.decoder, self.encoder)

    @property
    def input_channels(self) -> int:
        """The number of channels of a token and of an output query."""
        return self.adapter.num_channels
