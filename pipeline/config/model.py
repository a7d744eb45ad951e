"""Section `model`: the Perceiver that reads the data."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from perceiver_model.adapters.configs import MediaAdapter
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, LearnedPositions
from pipeline.config.base import Section
from pipeline.config.data import Modality


def _position_kind(value: Any) -> str | None:
    """Which positions are meant; Fourier features unless they say otherwise."""
    kind = value.get("kind", "fourier") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None


Positions = Annotated[
    Annotated[FourierConfig, Tag("fourier")] | Annotated[LearnedPositions, Tag("learned")],
    Discriminator(_position_kind),
]


class ModalityConfig(Section):
    """How one of several modalities is read.

    Attributes:
        positions: of adapters that do not hold their own, as those of points, text and tables do.
        dropout: probability that a training sample loses the whole modality.
    """

    adapter: Annotated[MediaAdapter, Field(discriminator="kind")]
    positions: Positions = FourierConfig()
    dropout: float = Field(default=0.0, ge=0, lt=1)


class ModelConfig(Section):
    """The Perceiver; its input's shape follows from `data`, its classes from the shards.

    Attributes:
        adapter: of the one modality; null where there are several.
        modalities: of several modalities, each one's own adapter and positions.
        decoder: Perceiver IO's, with one learned query; null takes the mean over the latents.
        positions: of adapters that do not hold their own, as those of points, text and tables do.
        pixel_mean, pixel_std: standardisation of pixels scaled to [0, 1]: one value, or one for
            each channel; images and films only.
    """

    adapter: Annotated[MediaAdapter, Field(discriminator="kind")] | None = None
    modalities: dict[Modality, ModalityConfig] = Field(default_factory=dict)
    positions: Positions = FourierConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig | None = None
    pixel_mean: tuple[float, ...] = (0.5,)
    pixel_std: tuple[float, ...] = (0.5,)
