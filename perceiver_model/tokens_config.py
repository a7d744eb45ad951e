"""The configuration of one input, its tokens and their positions. It does not import torch."""

from dataclasses import fields
from typing import Any, get_args

from perceiver_model.adapters.configs import AdapterBase
from perceiver_model.config import (
    DecoderConfig,
    EncoderConfig,
    FourierConfig,
    LearnedPositions,
    PositionConfig,
)
from perceiver_model.config_checks import check_length, config_dataclass, refusal
from perceiver_model.config_tree import ConfigTree


@config_dataclass
class TokensConfig(ConfigTree):
    """The base of every configuration with one input: input → adapter → [content | positions].

    Attributes:
        input: The configuration of the input.
        adapter: The configuration of the adapter, which must be able to read the input.
        positions: The position features of the token grid. None if the adapter's content already
            contains the positions.
    """

    input: Any
    adapter: Any
    positions: PositionConfig | None = FourierConfig()

    def __post_init__(self) -> None:
        if not isinstance(self.input, self._geometry.reads):
            raise refusal(self, "adapter", f"{self._kinds_reading()} for {self.input.kind}")
        self._geometry.check(self.input)
        if self._geometry.holds_positions and self.positions is not None:
            raise refusal(self, "positions", f"None: {self.adapter.kind} hold their own")
        if isinstance(self.positions, FourierConfig) and self.positions.max_resolution is not None:
            check_length(self.positions, "max_resolution", self.token_dims)

    @property
    def _geometry(self) -> AdapterBase:
        return self.adapter

    def _kinds_reading(self) -> str:
        """Return the kinds of the adapters that can read the input, as "a, b or c"."""
        (allowed,) = (field.type for field in fields(self) if field.name == "adapter")
        adapters = get_args(allowed) or (allowed,)
        kinds = [adapter.kind for adapter in adapters if isinstance(self.input, adapter.reads)]
        return " or ".join([", ".join(kinds[:-1]), kinds[-1]] if kinds[1:] else kinds)

    @property
    def token_grid(self) -> tuple[int, ...]:
        """The shape of the token grid, such as (rows, columns) for images or (time,) for sound.

        Of a backbone's feature maps, it is the grid of the first one.
        """
        return self._geometry.token_grid(self.input)

    @property
    def token_grids(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the token grids that successive cross-attends read, again and again.

        Only backbones have more than one.
        """
        return self._geometry.token_grids(self.input)

    @property
    def token_dims(self) -> int:
        """The number of dimensions of the token grids."""
        return self._geometry.token_dims(self.input)

    @property
    def content_channels(self) -> int:
        """The number of channels of a token without its position features."""
        return self._geometry.content_channels(self.input)

    @property
    def position_channels(self) -> int:
        """The number of channels of a token's position features."""
        return position_channels(self.positions, self.token_dims)

    @property
    def input_channels(self) -> int:
        """The number of channels of a token: its content and its position features."""
        return self.content_channels + self.position_channels

    @property
    def max_resolution(self) -> tuple[float, ...]:
        """The `max_resolution` of the Fourier features; by default, the shape of the token grid."""
        return max_resolution(self.positions, self.token_grid)


def max_resolution(
    positions: PositionConfig | None, token_grid: tuple[int, ...]
) -> tuple[float, ...]:
    """Return the `max_resolution` of the Fourier features; by default, the shape of the grid.

    Args:
        positions: The configuration of the positions.
        token_grid: The shape of the token grid.
    """
    fourier = isinstance(positions, FourierConfig) and positions.max_resolution
    return fourier or token_grid


def position_channels(positions: PositionConfig | None, dims: int) -> int:
    """Return the number of position channels of a token.

    Fourier features have one channel for the position and two per band, in each dimension.

    Args:
        positions: The configuration of the positions. None means no positions.
        dims: The number of dimensions of the token grid.
    """
    if positions is None:
        return 0
    if isinstance(positions, LearnedPositions):
        return positions.projected_channels or positions.num_channels
    return dims * (2 * positions.num_bands + 1)


def check_cross_heads(encoder: EncoderConfig, input_channels: int) -> None:
    """Check that the encoder's cross-attends can split tokens of `input_channels` into heads.

    Raises:
        ValueError: If they cannot.
    """
    channels = encoder.cross_channels or input_channels
    if channels % encoder.num_cross_heads:
        allowed = f"a divisor of the cross-attend's {channels} channels"
        raise refusal(encoder, "num_cross_heads", f"{allowed}; or set cross_channels")


def check_maps_are_read(encoder: EncoderConfig, adapter: Any) -> None:
    """Check that the encoder has a cross-attend for each feature map of a backbone.

    Raises:
        ValueError: If it has fewer.
    """
    if adapter.is_successive and encoder.num_cross_attends < len(adapter.outputs):
        count = len(adapter.outputs)
        raise refusal(encoder, "num_cross_attends", f"at least {count}, one for each of outputs")


def check_decoder_heads(decoder: DecoderConfig, encoder: EncoderConfig) -> None:
    """Check that the decoder can split its queries and keys into heads.

    Raises:
        ValueError: If it cannot.
    """
    if decoder.qk_channels is None and encoder.latent_dim % decoder.num_heads:
        allowed = f"a divisor of the latents' {encoder.latent_dim} channels"
        raise refusal(decoder, "num_heads", f"{allowed}; or set qk_channels")
