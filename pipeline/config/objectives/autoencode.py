"""The options of autoencoding: the model gives its own input back (Perceiver IO, section 4.3)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from perceiver_model.adapters.configs import (
    AudioInput,
    ClassInput,
    ImageInput,
    OneHotConfig,
    VideoInput,
)
from perceiver_model.adapters.multimodal_config import Modality, MultimodalInput, PaddedModalities
from perceiver_model.config import DecoderConfig, FourierConfig
from perceiver_model.families.autoencoder_config import AutoencoderConfig, GridOutput, VectorOutput
from pipeline.config.objectives.base import ObjectiveConfig, Tree

LABEL = "label"
"""The name of the class among the modalities and outputs."""


class AutoencodeConfig(ObjectiveConfig):
    """The model compresses images, films and sounds into its latents, and gives them back.

    If the targets are classes, the class is one more modality. Training hides it half of the time,
    and evaluations always, so that the model also classifies.

    Attributes:
        kind: The name of the objective.
        weights: The weight of each output in the loss, by the name of its modality, and `label` for
            the class. Outputs that are not named have weight 1.
        loss: The error of pixels and sounds: `l1` is absolute, `mse` is squared. The class has the
            cross-entropy.
        train_queries: The number of queries of each output that a training step decodes. Each step
            draws others. Null decodes all.
        chunk_queries: The number of queries that an evaluation decodes at a time. It only limits
            the memory.
        samples_per_query: The number of samples of a sound that one query gives.
        query_bands: The number of Fourier bands of the queries' positions.
        decoded_channels: The number of channels of every output before its own linear layer.
    """

    targets: ClassVar = ("none", "class")

    kind: Literal["autoencode"] = "autoencode"
    weights: dict[str, float] = Field(default_factory=dict)
    loss: Literal["l1", "mse"] = "l1"
    train_queries: int | None = Field(default=2048, ge=1)
    chunk_queries: int = Field(default=8192, ge=1)
    samples_per_query: int = Field(default=16, ge=1)
    query_bands: int = Field(default=32, ge=1)
    decoded_channels: int = Field(default=256, ge=1)

    def check(self, config: Tree) -> None:
        """Refuse weights of no output, and weights that are not above 0."""
        super().check(config)
        names = [*config.data.formats, *([LABEL] if config.data.target.kind == "class" else [])]
        for name, weight in self.weights.items():
            if name not in names:
                raise ValueError(
                    f"objective.weights names {name!r}; the outputs are {', '.join(names)}"
                )
            if not weight > 0:
                raise ValueError(f"objective.weights.{name} is {weight:g}; must be above 0")

    def model(
        self,
        config: Tree,
        num_classes: int,
        made_with: Mapping[str, Any] | None = None,
    ) -> AutoencoderConfig:
        """Return the configuration of an autoencoder of all modalities."""
        reading = config.reading(made_with)
        if isinstance(reading["input"], MultimodalInput):
            parts = dict(reading["input"].modalities)
        else:
            ((name, _),) = config.data.formats.items()
            parts = {name: Modality(**reading)}
        outputs: dict[str, GridOutput | VectorOutput] = {
            name: self._output(name, part.input) for name, part in parts.items()
        }
        if config.data.target.kind == "class":
            parts[LABEL] = Modality(
                input=ClassInput(num_classes=num_classes),
                adapter=OneHotConfig(),
                positions=None,
                mask_probability=0.5,
                masked_in_evaluation=True,
            )
            outputs[LABEL] = VectorOutput(
                num_channels=num_classes, query_channels=config.model.encoder.latent_dim
            )
        return AutoencoderConfig(
            input=MultimodalInput(modalities=parts),
            adapter=PaddedModalities(),
            encoder=config.model.encoder,
            decoder=config.model.decoder or DecoderConfig(query_residual=False),
            outputs=outputs,
            decoded_channels=self.decoded_channels,
        )

    def _output(self, name: str, media: Any) -> GridOutput:
        positions = FourierConfig(num_bands=self.query_bands)
        if isinstance(media, ImageInput):
            grid: tuple[int, ...] = (media.height, media.width)
            return GridOutput(grid=grid, num_channels=media.channels, positions=positions)
        if isinstance(media, VideoInput):
            grid = (media.num_frames, media.height, media.width)
            return GridOutput(grid=grid, num_channels=media.channels, positions=positions)
        if isinstance(media, AudioInput):
            count = self.samples_per_query
            if media.num_samples % count:
                raise ValueError(
                    f"samples_per_query is {count}; must be a divisor of the {media.num_samples} "
                    "samples of a sound"
                )
            return GridOutput(
                grid=(media.num_samples // count,), num_channels=count, positions=positions
            )
        raise ValueError(
            f"data.{name} cannot be an output; the objective 'autoencode' gives back images, "
            "films and raw sounds"
        )
