"""The section `model`: the Perceiver that reads the data."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from perceiver_model.adapters.configs import MediaAdapter
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, LearnedPositions
from pipeline.config.base import ConfigBase
from pipeline.config.modalities import ModalityName


def _position_kind(value: Any) -> str | None:
    """Which positions are meant; Fourier features unless they say otherwise."""
    kind = value.get("kind", "fourier") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None


Positions = Annotated[
    Annotated[FourierConfig, Tag("fourier")] | Annotated[LearnedPositions, Tag("learned")],
    Discriminator(_position_kind),
]


class ModalityConfig(ConfigBase):
    """How one of several modalities is read.

    Attributes:
        adapter: what turns the modality into tokens.
        positions: the positions of tokens, for adapters that do not hold their own. The adapters of
            points, text and tables hold theirs.
        dropout: probability that a training sample loses the whole modality.
    """

    adapter: Annotated[MediaAdapter, Field(discriminator="kind")]
    positions: Positions = FourierConfig()
    dropout: float = Field(default=0.0, ge=0, lt=1)


class ModelConfig(ConfigBase):
    """The Perceiver; its input's shape follows from `data`, its classes from the shards.

    Attributes:
        adapter: what turns the data's one modality into tokens; null where there are several.
        modalities: for data of several modalities, the adapter and positions of each one.
        positions: the positions of tokens, for adapters that do not hold their own. The adapters of
            points, text and tables hold theirs.
        encoder: the latents, the cross-attends and the latent blocks.
        decoder: the decoder of Perceiver IO, with one learned query; null takes the mean over the
            latents.
        pixel_mean: subtracted from pixels that are scaled to [0, 1]: one value, or one for each
            channel. For images and films only.
        pixel_std: then divides them: one value, or one for each channel. For images and films only.
    """

    adapter: Annotated[MediaAdapter, Field(discriminator="kind")] | None = None
    modalities: dict[ModalityName, ModalityConfig] = Field(default_factory=dict)
    positions: Positions = FourierConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig | None = None
    pixel_mean: tuple[float, ...] = (0.5,)
    pixel_std: tuple[float, ...] = (0.5,)
