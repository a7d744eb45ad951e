"""How a Perceiver classifier is built: a frozen dataclass, checked once, free of torch."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from perceiver_model.config import (
    DecoderConfig,
    EncoderConfig,
    FourierConfig,
    LearnedPositions,
    PositionConfig,
)
from perceiver_model.config_checks import (
    FORBID_EXTRA,
    check_numbers,
    check_positive_integers,
    read_config,
    read_kind,
    refusal,
)
from perceiver_model.inputs import AudioInput, Chunks, Conv, ImageInput, Mel, Patches, Pixels

InputConfig = ImageInput | AudioInput
AdapterConfig = Pixels | Patches | Conv | Chunks | Mel


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A whole classifier: input → adapter → [content | positions] → encoder → logits.

    positions: of the token grid; None if the adapter's content holds them.
    decoder: None takes the mean over the latents and a linear layer (paper); a decoder reads the
        latents with one learned query of `latent_dim` channels (IO).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    input: InputConfig
    adapter: AdapterConfig
    positions: PositionConfig | None = FourierConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig | None = None
    num_classes: int

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_classes")
        match self.input, self.adapter:
            case ImageInput() as image, Patches() as patches:
                patches.check_tiles(image)
            case AudioInput() as audio, Mel() as mel:
                mel.check_resolves(audio)
            case (ImageInput(), Pixels() | Conv()) | (AudioInput(), Chunks()):
                pass
            case ImageInput(), _:
                raise refusal(self, "adapter", "pixels, patches or conv for images")
            case _:
                raise refusal(self, "adapter", "chunks or mel for audio")
        if isinstance(self.positions, FourierConfig) and self.positions.max_resolution is not None:
            check_numbers(self.positions, "max_resolution", (len(self.token_grid),), above=0)
        if self.cross_channels % self.encoder.num_cross_heads:
            allowed = f"a divisor of the cross-attend's {self.cross_channels} channels"
            raise refusal(self.encoder, "num_cross_heads", f"{allowed}; or set cross_channels")
        if self.decoder and self.decoder.qk_channels is None:
            allowed = f"a divisor of the latents' {self.encoder.latent_dim} channels"
            if self.encoder.latent_dim % self.decoder.num_heads:
                raise refusal(self.decoder, "num_heads", f"{allowed}; or set qk_channels")

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Shape of the tokens' positions: (rows, columns) for images, (time,) for sound."""
        match self.input, self.adapter:
            case ImageInput() as image, Pixels():
                return image.height, image.width
            case ImageInput() as image, Patches(patch_size=size):
                return image.height // size, image.width // size
            case ImageInput() as image, Conv():
                return math.ceil(image.height / 2), math.ceil(image.width / 2)
            case AudioInput() as audio, Chunks(chunk_size=size):
                return (math.ceil(audio.num_samples / size),)
            case AudioInput() as audio, Mel() as mel:
                return (mel.num_frames(audio),)
        raise AssertionError("refused by __post_init__")

    @property
    def content_channels(self) -> int:
        """Channels of a token before its position features."""
        match self.input, self.adapter:
            case ImageInput() as image, Pixels():
                return image.channels
            case ImageInput() as image, Patches(patch_size=size):
                return size * size * image.channels
            case _, Conv(num_channels=channels) | Mel(num_mels=channels):
                return channels
            case _, Chunks(chunk_size=size):
                return size
        raise AssertionError("refused by __post_init__")

    @property
    def position_channels(self) -> int:
        """Channels of a token's position features.

        Fourier features have, per dimension, the position and 2 per band.
        """
        if self.positions is None:
            return 0
        if isinstance(self.positions, LearnedPositions):
            return self.positions.projected_channels or self.positions.num_channels
        return len(self.token_grid) * (2 * self.positions.num_bands + 1)

    @property
    def input_channels(self) -> int:
        """Channels of a token: content and position features."""
        return self.content_channels + self.position_channels

    @property
    def cross_channels(self) -> int:
        """Width of queries and keys in a cross-attend."""
        return self.encoder.cross_channels or self.input_channels

    @property
    def max_resolution(self) -> tuple[float, ...]:
        """`positions.max_resolution` of Fourier features, or else the token grid's shape."""
        fourier = isinstance(self.positions, FourierConfig) and self.positions.max_resolution
        return fourier or self.token_grid

    def to_dict(self) -> dict[str, Any]:
        """The whole tree in JSON's types: `from_dict(json.loads(json.dumps(to_dict())))` is it."""
        return dataclasses.asdict(
            self,
            dict_factory=lambda items: {
                key: list(value) if isinstance(value, tuple) else value for key, value in items
            },
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote; raises ValueError for unknown or missing keys, bad values."""
        parts = dict(values)
        if "input" in parts:
            parts["input"] = read_kind((ImageInput, AudioInput), parts["input"])
        if "adapter" in parts:
            parts["adapter"] = read_kind((Pixels, Patches, Conv, Chunks, Mel), parts["adapter"])
        if parts.get("positions") is not None:
            parts["positions"] = read_kind((FourierConfig, LearnedPositions), parts["positions"])
        if "encoder" in parts:
            parts["encoder"] = read_config(EncoderConfig, parts["encoder"])
        if parts.get("decoder") is not None:
            parts["decoder"] = read_config(DecoderConfig, parts["decoder"])
        return read_config(cls, parts)
