"""The section `model`: the Perceiver that reads the data."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from perceiver_model.adapters.configs import MediaAdapter
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.config_checks import Count, config_dataclass
from perceiver_model.families.autoregressive_config import ARSize
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


@config_dataclass
class AutoregressiveConfig(ARSize):
    """A Perceiver AR for texts of UTF-8 bytes. Its context is as long as `data.text.max_length`."""

    num_latents: Count = 256
    channels: Count = 256
    num_self_attends: Count = 6
    num_heads: Count = 8


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
