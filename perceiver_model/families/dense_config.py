"""The configuration of dense prediction: one output per element of a grid, without torch."""

from perceiver_model.adapters.configs import MediaAdapter, MediaInput
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, PositionConfig
from perceiver_model.config_checks import Count, check_length, config_dataclass, refusal
from perceiver_model.tokens_config import (
    TokensConfig,
    check_cross_heads,
    check_decoder_heads,
    check_maps_are_read,
    position_channels,
)


@config_dataclass
class DenseConfig(TokensConfig):
    """Dense prediction: input → tokens → encoder → decoder, with a query per output (IO, 3.2).

    Attributes:
        input: The configuration of the input.
        adapter: The configuration of the adapter, which must be able to read the input.
        encoder: The configuration of the encoder.
        decoder: The configuration of the decoder.
        output_channels: The number of channels of every output: the classes of a segmentation, 1
            for depth, 2 for flow.
        output_grid: The shape of the outputs, such as (height, width). None means the input's own
            grid, which is an image's pixels, whatever its tokens are.
        query_positions: The position features of the outputs. With Fourier features, the trained
            model can also decode other resolutions.
        query_tokens: Whether a query also contains the content of the input token at the same
            position (DeepMind's `concat_preprocessed_input`). This suits outputs that follow the
            input closely.
    """

    input: MediaInput
    adapter: MediaAdapter
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig(query_residual=False)
    output_channels: Count
    output_grid: tuple[Count, ...] | None = None
    query_positions: PositionConfig = FourierConfig()
    query_tokens: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_grid is None and not hasattr(self.input, "grid"):
            raise refusal(self, "output_grid", f"given: {self.input.kind} has no grid")
        dims = len(self.outputs)
        if self.query_tokens and self.adapter.is_successive:
            raise refusal(self, "query_tokens", "False: a backbone's maps have grids of their own")
        if self.query_tokens and dims != self.token_dims:
            allowed = f"False: outputs have {dims} dimensions, tokens {self.token_dims}"
            raise refusal(self, "query_tokens", allowed)
        fourier = self.query_positions
        if isinstance(fourier, FourierConfig) and fourier.max_resolution is not None:
            check_length(fourier, "max_resolution", dims)
        check_cross_heads(self.encoder, self.input_channels)
        check_maps_are_read(self.encoder, self.adapter)
        check_decoder_heads(self.decoder, self.encoder)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The shape of the output grid."""
        return self.output_grid or self.input.grid  # type: ignore[union-attr]  # has one, or refused

    @property
    def query_channels(self) -> int:
        """The number of channels of an output query."""
        tokens = self.content_channels if self.query_tokens else 0
        return tokens + position_channels(self.query_positions, len(self.outputs))
