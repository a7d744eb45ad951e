"""The section `model`: the Perceiver that reads the data."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from perceiver_model.adapters.configs import MediaAdapter
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, LearnedPositions
from pipeline.config.base import ConfigBase
from pipeline.config.init import InitConfig
from pipeline.config.modalities import ModalityName


def _position_kind(value: Any) -> str | None:
    """Return the kind of positions. Without a `kind`, they are Fourier features."""
    kind = value.get("kind", "fourier") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None


Positions = Annotated[
    Annotated[FourierConfig, Tag("fourier")] | Annotated[LearnedPositions, Tag("learned")],
    Discriminator(_position_kind),
]


class ModalityConfig(ConfigBase):
    """How one of several modalities is read.

    Attributes:
        adapter: The adapter that turns the modality into tokens.
        positions: The positions of tokens, for adapters that do not hold their own. The adapters of
            points, text and tables hold theirs.
        dropout: The probability that a training sample loses the whole modality.
    """

    adapter: Annotated[MediaAdapter, Field(discriminator="kind")]
    positions: Positions = FourierConfig()
    dropout: float = Field(default=0.0, ge=0, lt=1)


class AutoregressiveConfig(ConfigBase):
    """A Perceiver AR (arXiv 2202.07765, appendix C) for texts of UTF-8 bytes.

    Its context is as long as `data.text.max_length`.

    Attributes:
        num_latents: The number of latents. They are the last bytes of the context, and each one
            predicts the byte after it.
        channels: The width of tokens and latents.
        num_self_attends: The number of causal self-attends after the cross-attend.
        num_heads: The number of heads of the cross-attend and of every self-attend.
        widening: The hidden width of the MLPs, in multiples of `channels`.
        activation: The activation of the MLPs: squared ReLU, GELU by tanh, or exact GELU.
        positions: The positions of tokens: `rotary` rotates queries and keys; `learned` adds a
            vector to each token.
        rotary_fraction: The share of each head's channels that are rotated.
        max_wavelength: The slowest rotation is 1 / max_wavelength radians a token; null takes the
            length of the context.
        tied_logits: Whether logits are products with the token embeddings.
        dropout: The probability of dropout after every attention and MLP.
        context_dropout: The probability that the cross-attend does not see a token in training.
    """

    num_latents: int = 256
    channels: int = 256
    num_self_attends: int = 6
    num_heads: int = 8
    widening: int = 4
    activation: Literal["squared_relu", "gelu_tanh", "gelu_erf"] = "squared_relu"
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_fraction: float = 0.5
    max_wavelength: float | None = None
    tied_logits: bool = False
    dropout: float = 0.1
    context_dropout: float = 0.0


class ModelConfig(ConfigBase):
    """The Perceiver. Its input's shape follows from `data`, its classes from the shards.

    Attributes:
        adapter: The adapter that turns the data's only modality into tokens; null if there are
            several modalities.
        modalities: The adapter and positions of each modality, if the data has several.
        positions: The positions of tokens, for adapters that do not hold their own. The adapters of
            points, text and tables hold theirs.
        encoder: The latents, the cross-attends and the latent blocks.
        decoder: The decoder of Perceiver IO. Null takes the mean over the latents for objectives
            that predict classes, and a decoder with default values for all others.
        autoregressive: The Perceiver AR of the objective `autoregressive`, which takes no other
            field of this section; null for all other objectives.
        pixel_mean: What is subtracted from pixels after they are scaled to [0, 1]: one value, or
            one for each channel. For images and films only.
        pixel_std: What the pixels are then divided by: one value, or one for each channel. For
            images and films only.
        init: The weights that a training starts from, and which of them it trains; null starts from
            new weights and trains all.
    """

    adapter: Annotated[MediaAdapter, Field(discriminator="kind")] | None = None
    modalities: dict[ModalityName, ModalityConfig] = Field(default_factory=dict)
    positions: Positions = FourierConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig | None = None
    autoregressive: AutoregressiveConfig | None = None
    pixel_mean: tuple[float, ...] = (0.5,)
    pixel_std: tuple[float, ...] = (0.5,)
    init: InitConfig | None = None
