"""The configuration of optical flow with Perceiver IO (IO, section 4.2 and appendix H)."""

from perceiver_model.adapters.configs import VideoInput
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, PositionConfig
from perceiver_model.config_checks import (
    Count,
    PositiveNumber,
    check_length,
    config_dataclass,
    refusal,
)
from perceiver_model.config_tree import ConfigTree
from perceiver_model.tokens_config import (
    check_cross_heads,
    check_decoder_heads,
    max_resolution,
    position_channels,
)


@config_dataclass
class FlowConfig(ConfigTree):
    """Optical flow: two frames → one token per pixel → encoder → the same tokens as queries → flow.

    The defaults are DeepMind's model: 368 × 496 pixels, 64 + 258 channels, 2,048 latents of 512
    channels, 24 self-attends and 41,057,134 parameters.

    Attributes:
        input: The two frames, as a video.
        patch_size: The side of the square of pixels around a token's pixel that the token sees in
            both frames; odd.
        num_channels: The number of channels that a linear layer gives to those pixels.
        positions: The position features of the pixels.
        encoder: The configuration of the encoder.
        decoder: The configuration of the decoder.
        rescale_factor: The number by which the decoder's output is divided.
        flow_scale: The number by which it is then multiplied to become pixels. DeepMind's network
            predicts flow in units of 20 pixels; its released notebook multiplies by 20 afterwards.
    """

    input: VideoInput = VideoInput(num_frames=2, height=368, width=496)
    patch_size: Count = 3
    num_channels: Count = 64
    positions: PositionConfig = FourierConfig()
    encoder: EncoderConfig = EncoderConfig(
        num_latents=2048,
        latent_dim=512,
        num_blocks=1,
        num_cross_attends=1,
        num_self_attends=24,
        num_self_heads=16,
    )
    decoder: DecoderConfig = DecoderConfig(query_residual=False)
    rescale_factor: PositiveNumber = 100.0
    flow_scale: PositiveNumber = 20.0

    def __post_init__(self) -> None:
        if self.input.num_frames != 2:
            raise refusal(self.input, "num_frames", "2 for optical flow")
        if self.patch_size % 2 == 0:
            raise refusal(self, "patch_size", "odd, so that a token's pixel is in the middle")
        if isinstance(self.positions, FourierConfig) and self.positions.max_resolution is not None:
            check_length(self.positions, "max_resolution", 2)
        check_cross_heads(self.encoder, self.input_channels)
        check_decoder_heads(self.decoder, self.encoder)

    @property
    def token_grid(self) -> tuple[int, int]:
        """The token grid (rows, columns), with one token per pixel."""
        return self.input.height, self.input.width

    @property
    def input_channels(self) -> int:
        """The number of channels of a token and of an output query."""
        return self.num_channels + position_channels(self.positions, 2)

    @property
    def max_resolution(self) -> tuple[float, ...]:
        """The `max_resolution` of the Fourier features; by default, the size of the frames."""
        return max_resolution(self.positions, self.token_grid)
