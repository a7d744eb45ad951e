"""How a Perceiver classifier is built: frozen dataclasses, checked once, free of torch.

Every check raises a `ValueError` that names the field, its value and what is allowed. The classes
carry `__pydantic_config__`, so that a pydantic model may nest them and refuse unknown keys.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from perceiver_model.config_checks import (
    FORBID_EXTRA,
    check_number,
    check_numbers,
    check_one_of,
    check_positive_integers,
    read_config,
    read_kind,
    refusal,
)
from perceiver_model.inputs import AudioInput, Chunks, Conv, ImageInput, Mel, Patches, Pixels

InputConfig = ImageInput | AudioInput
AdapterConfig = Pixels | Patches | Conv | Chunks | Mel


@dataclass(frozen=True, kw_only=True)
class FourierConfig:
    """Fourier position features (paper, section 3.2).

    `max_resolution` holds, for every dimension of the token grid, the resolution whose Nyquist
    frequency is the highest band; None takes the grid's own shape.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    num_bands: int = 64
    max_resolution: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_bands")
        if self.max_resolution is not None:
            check_numbers(self, "max_resolution", (1, 2), above=0)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The Perceiver's latents, cross-attends and latent blocks; defaults are the paper's ImageNet.

    num_latents, latent_dim: shape of the learned latent array.
    num_blocks: latent blocks, each of `num_self_attends` self-attends.
    num_cross_attends: how often the latents read the input.
    cross_channels: width of queries, keys and values in a cross-attend; None is the input's
        channels, DeepMind's choice.
    cross_widening, self_widening: hidden width of the MLPs, in multiples of `latent_dim`.
    share_cross_attends: "after_first" is the paper's (the first has its own weights, the others
        share theirs); "all" is one set of weights; "none" is a set for each.
    share_self_attends: whether all blocks share weights, as in the paper.
    cross_attend_layout: "interleaved" spreads the cross-attends evenly over the blocks, the first
        before the first block; "first" puts them all before the first block.
    dropout: probability after every attention and MLP.
    latent_init_std: of the truncated normal that the initial latents are drawn from. The paper's
        0.02 suits its scale; small models break the latents' symmetry sooner with more.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    num_latents: int = 512
    latent_dim: int = 1024
    num_blocks: int = 8
    num_cross_attends: int = 8
    num_self_attends: int = 6
    num_cross_heads: int = 1
    num_self_heads: int = 8
    cross_channels: int | None = None
    cross_widening: int = 1
    self_widening: int = 1
    share_cross_attends: Literal["all", "after_first", "none"] = "after_first"
    share_self_attends: bool = True
    cross_attend_layout: Literal["interleaved", "first"] = "interleaved"
    dropout: float = 0.0
    latent_init_std: float = 0.02

    def __post_init__(self) -> None:
        check_positive_integers(
            self,
            *("num_latents", "latent_dim", "num_blocks", "num_cross_attends", "num_self_attends"),
            *("num_cross_heads", "num_self_heads", "cross_widening", "self_widening"),
        )
        check_one_of(self, "share_cross_attends", "all", "after_first", "none")
        check_one_of(self, "share_self_attends", True, False)
        check_one_of(self, "cross_attend_layout", "interleaved", "first")
        if self.cross_attend_layout == "interleaved" and self.num_cross_attends > self.num_blocks:
            raise refusal(self, "num_cross_attends", f"at most num_blocks = {self.num_blocks}")
        if self.latent_dim % self.num_self_heads:
            allowed = f"a multiple of num_self_heads = {self.num_self_heads}"
            raise refusal(self, "latent_dim", allowed)
        if self.cross_channels is not None:
            check_positive_integers(self, "cross_channels")
            if self.cross_channels % self.num_cross_heads:
                allowed = f"a multiple of num_cross_heads = {self.num_cross_heads}"
                raise refusal(self, "cross_channels", allowed)
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise refusal(self, "dropout", "at least 0 and below 1")
        check_number(self, "latent_init_std", above=0)

    @property
    def cross_attends_before_block(self) -> tuple[int, ...]:
        """How many cross-attends come right before each block; sums to `num_cross_attends`."""
        if self.cross_attend_layout == "first":
            return (self.num_cross_attends,) + (0,) * (self.num_blocks - 1)
        counts = [0] * self.num_blocks
        for index in range(self.num_cross_attends):
            counts[index * self.num_blocks // self.num_cross_attends] = 1
        return tuple(counts)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A whole classifier: input → adapter → [content | position features] → encoder → logits."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    input: InputConfig
    adapter: AdapterConfig
    fourier: FourierConfig = FourierConfig()
    encoder: EncoderConfig = EncoderConfig()
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
        if self.fourier.max_resolution is not None:
            check_numbers(self.fourier, "max_resolution", (len(self.token_grid),), above=0)
        if self.cross_channels % self.encoder.num_cross_heads:
            allowed = f"a divisor of the cross-attend's {self.cross_channels} channels"
            raise refusal(self.encoder, "num_cross_heads", f"{allowed}; or set cross_channels")

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
        """Channels of a token's Fourier features: per dimension, the position and 2 per band."""
        return len(self.token_grid) * (2 * self.fourier.num_bands + 1)

    @property
    def input_channels(self) -> int:
        """Channels of a token: content and position features."""
        return self.content_channels + self.position_channels

    @property
    def cross_channels(self) -> int:
        """Width of queries, keys and values in a cross-attend."""
        return self.encoder.cross_channels or self.input_channels

    @property
    def max_resolution(self) -> tuple[float, ...]:
        """`fourier.max_resolution`, or else the token grid's shape."""
        return self.fourier.max_resolution or self.token_grid

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
        if "fourier" in parts:
            parts["fourier"] = read_config(FourierConfig, parts["fourier"])
        if "encoder" in parts:
            parts["encoder"] = read_config(EncoderConfig, parts["encoder"])
        return read_config(cls, parts)
