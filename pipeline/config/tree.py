"""The configuration tree: typed, frozen, validated once at the edge.

Every section refuses unknown keys and wrong types. `pipeline.config.load.load_config` reads
it from YAML with dotted overrides.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from perceiver_model.adapters.configs import BackboneConfig
from perceiver_model.adapters.multimodal_config import Modality as ModalityModel
from perceiver_model.adapters.multimodal_config import MultimodalInput, PaddedModalities
from perceiver_model.config import FourierConfig
from perceiver_model.families.classifier_config import ClassifierConfig
from pipeline.config.augment import check_augment, check_mixing
from pipeline.config.base import ConfigBase
from pipeline.config.cluster import ClusterConfig
from pipeline.config.data import DataConfig, absolute, refuse_relative_in_a_job
from pipeline.config.folders import Folder, folder_at, output_address
from pipeline.config.model import ModalityConfig, ModelConfig
from pipeline.config.objectives import AnyObjective, ObjectiveConfig, default_objective
from pipeline.config.registry import RegistryConfig
from pipeline.config.stream_check import check_stream
from pipeline.config.study import StudyConfig
from pipeline.config.tracking_uri import default_tracking_uri
from pipeline.config.training import TrainingConfig
from pipeline.inputs.model_input import fitted_media, model_adapter, model_input
from pipeline.media import MediaFormat


class TrackingConfig(ConfigBase):
    """The MLflow server that records runs and models.

    Attributes:
        uri: The tracking server or database. Null takes MLFLOW_TRACKING_URI if it is set, and else
            an SQLite database in the output folder.
        experiment: The name of the MLflow experiment; null takes the configuration's `name`.
        system_metrics: Whether the CPU, memory and GPU use of every machine is logged.
        system_metrics_seconds: The seconds from one measurement to the next.
        examples: The number of validation samples whose predictions a training logs at its end as
            pictures, with where the best checkpoint's model looks; 0 logs none.
    """

    uri: str | None = None
    experiment: str | None = None
    system_metrics: bool = True
    system_metrics_seconds: float = Field(default=5.0, gt=0)
    examples: int = Field(default=8, ge=0, le=100)


class Config(ConfigBase):
    """The whole tree.

    Attributes:
        name: The name of the run folder `output/name` and of the MLflow experiment.
        output: The one folder that everything is written to, or its fsspec URL, such as
            `s3://bucket/prefix`. A path is made absolute, because Ray's workers have working
            directories of their own.
        seed: The seed of splits, order, augmentation and initial weights.
        shards: The folder or URL of the shard set; null is `output/name/shards`.
        data: The raw media, and how they are decoded.
        model: The Perceiver that reads the data.
        objective: What the model is trained for; null takes the objective that `data.target.kind`
            implies, with its default options.
        training: How the model is trained.
        cluster: The machines and processes that do the work.
        tracking: Where MLflow keeps runs and models.
        study: What `perceiver tune` searches; null if there is no study.
        registry: How a model is registered and promoted.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: str = Field(default="runs", validate_default=True)
    seed: int = Field(default=0, ge=0)
    shards: str | None = None
    data: DataConfig
    model: ModelConfig
    objective: AnyObjective | None = None
    training: TrainingConfig = TrainingConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    study: StudyConfig | None = None
    registry: RegistryConfig = RegistryConfig()

    @field_validator("output")
    @classmethod
    def _output_is_a_folder(cls, output: str) -> str:
        refuse_relative_in_a_job(output)
        return output_address(output)

    @field_validator("shards")
    @classmethod
    def _shards_are_absolute(cls, shards: str | None) -> str | None:
        if shards is None:
            return None
        refuse_relative_in_a_job(shards)
        return absolute(shards)

    @field_validator("model")
    @classmethod
    def _weights_are_absolute(cls, model: ModelConfig) -> ModelConfig:
        backbone = model.adapter
        if not isinstance(backbone, BackboneConfig) or backbone.weights is None:
            return model
        refuse_relative_in_a_job(backbone.weights)
        backbone = replace(backbone, weights=absolute(backbone.weights))
        return model.model_copy(update={"adapter": backbone})

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.cluster.decode is not None and self.training.loader_workers:
            raise ValueError(
                f"training.loader_workers is {self.training.loader_workers} with cluster.decode, "
                "which decodes in other processes; give 0"
            )
        if self.objective is not None:
            self.objective.check(self)
        try:
            if self.trained_for is None:
                self.reading()
            else:
                self.trained_for.model(self, num_classes=2)
        except ValueError as error:
            raise ValueError(f"model: {error}") from None
        check_augment(self.training.augment, self.data.formats)
        check_mixing(self.training.augment, self.data.formats, self.trained_for)
        check_stream(self.training, self.data.formats, self.trained_for)
        parts: dict[str, ModelConfig | ModalityConfig] = {"model": self.model}
        parts |= {f"model.modalities.{name}": p for name, p in self.model.modalities.items()}
        for path, part in parts.items():
            if getattr(part.adapter, "norm", None) == "batch":
                raise ValueError(
                    f"{path}.adapter.norm is 'batch', the statistics of one worker's part of a "
                    "batch; give 'group', which trains the same on any number of workers"
                )
            if getattr(part.positions, "precision", "float64") != "float64":
                raise ValueError(
                    f"{path}.positions.precision: shard sets hold features of float64 only"
                )
        fewest, most = (max(1, n) for n in (self.cluster.min_workers, self.cluster.max_workers))
        for world_size in range(fewest, most + 1):
            self.micro_batch_size(world_size)
        return self

    @property
    def folder(self) -> Folder:
        """The folder `output/name`, for everything except MLflow's files."""
        return folder_at(self.output) / self.name

    @property
    def shards_folder(self) -> str:
        """The folder or URL of the shard set."""
        return self.shards or str(self.folder / "shards")

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI. `load_config` has already read `MLFLOW_TRACKING_URI`.

        Raises:
            UserError: None is given, and the output folder, which is a URL, can hold no database.
        """
        return self.tracking.uri or default_tracking_uri(self.output)

    @property
    def global_micro_batch(self) -> int:
        """The number of samples that all workers together take in one forward pass."""
        stream = self.training.stream
        parts = self.training.gradient_accumulation_steps * (stream.parts_per_step if stream else 1)
        return self.training.batch_size // parts

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage of the training, as `training.zero_stage` says it or `auto` finds it."""
        return self.training.stage_for(self.cluster.max_workers)

    def micro_batch_size(self, world_size: int) -> int:
        """Return the largest number of samples that one worker takes in one forward pass.

        If the workers do not divide the samples, the last workers take fewer of them.

        Raises:
            ValueError: The batch does not divide among the accumulation steps and parts, or there
                are more workers than samples in a forward pass, or streams that the workers do not
                divide.
        """
        training = self.training
        stream = training.stream
        parts = training.gradient_accumulation_steps * (stream.parts_per_step if stream else 1)
        factors = f"gradient_accumulation_steps{' x stream.parts_per_step' * bool(stream)}"
        if training.batch_size % parts:
            raise ValueError(
                f"training.batch_size is {training.batch_size}; must be a multiple of {factors} "
                f"= {parts}"
            )
        samples = training.batch_size // parts
        if samples % training.canonical_nodes:
            raise ValueError(
                f"training.canonical_nodes is {training.canonical_nodes}, and all workers take "
                f"{samples} samples in a forward pass (training.batch_size "
                f"{training.batch_size} / {factors} {parts}); give a divisor of {samples}"
            )
        if world_size > samples or (stream and samples % world_size):
            fitting = [n for n in range(1, samples + 1) if not stream or samples % n == 0]
            raise ValueError(
                f"training.batch_size is {training.batch_size}, which is {samples} rows for all "
                f"workers in a forward pass ({factors} = {parts}), and cluster.num_workers is "
                f"{world_size}; these numbers of workers fit: {_in_words(fitting)}"
            )
        return -(-samples // world_size)

    @property
    def trained_for(self) -> ObjectiveConfig | None:
        """The section `objective`, or the objective that follows from `data.target.kind`.

        None if the targets are `none` and no objective is given.
        """
        return self.objective or default_objective(self.data.target.kind)

    def classifier(
        self, num_classes: int, made_with: Mapping[str, Any] | None = None
    ) -> ClassifierConfig:
        """Return the configuration of a classifier of the data.

        Args:
            num_classes: The number of classes.
            made_with: The same as for `reading`.

        Raises:
            ValueError: The model cannot read such data.
        """
        return ClassifierConfig(
            **self.reading(made_with),
            encoder=self.model.encoder,
            decoder=self.model.decoder,
            num_classes=num_classes,
        )

    def reading(self, made_with: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what turns the data into tokens: the `input`, `adapter` and `positions`.

        They are the fields that every configuration of a model with tokens has
        (`perceiver_model.tokens_config.TokensConfig`).

        Args:
            made_with: The configuration in the shard set's manifest, which says what a table's
                training rows hold. None gives an input of the same shape, which cannot read a
                table's values.

        Raises:
            ValueError: The model cannot read such data.
        """
        model, formats = self.model, self.data.formats
        if made_with is not None:
            formats = {name: fitted_media(fmt, made_with) for name, fmt in formats.items()}
        if not model.modalities:
            if model.adapter is None:
                raise ValueError("adapter is missing; of several modalities, give modalities")
            return self._reading(self.data.one_of(formats), model)
        if model.adapter is not None:
            raise ValueError("adapter and modalities are both given; each modality has its own")
        reading = {str(name): part for name, part in model.modalities.items()}
        if set(reading) != set(formats):
            raise ValueError(f"modalities: name those of data, which are {', '.join(formats)}")
        parts = {
            name: ModalityModel(**self._reading(fmt, reading[name]), dropout=reading[name].dropout)
            for name, fmt in formats.items()
        }
        return {
            "input": MultimodalInput(modalities=parts),
            "adapter": PaddedModalities(),
            "positions": None,
        }

    def _reading(self, media: MediaFormat, part: "ModelConfig | ModalityConfig") -> dict[str, Any]:
        """Return the input, the adapter and the positions of one modality."""
        assert part.adapter is not None
        # A tree that was written and read again names the default, too.
        if part.adapter.holds_positions and part.positions != FourierConfig():
            raise ValueError(
                f"positions are given, but adapter {part.adapter.kind!r} holds its own; leave "
                "them out"
            )
        adapter = model_adapter(media, part.adapter)
        if isinstance(adapter, BackboneConfig):  # a model is the same without its first weights
            adapter = replace(adapter, weights=None)
        mean, std = self.model.pixel_mean, self.model.pixel_std
        return {
            "input": model_input(media, pixel_mean=mean, pixel_std=std),
            "adapter": adapter,
            "positions": None if part.adapter.holds_positions else part.positions,
        }

    def tree(self) -> dict[str, Any]:
        """Return the tree in the types of JSON."""
        return self.model_dump(mode="json")


def _in_words(numbers: list[int]) -> str:
    """Return whole numbers as text; a long run without gaps as its first and last."""
    if numbers == [*range(1, len(numbers) + 1)]:
        return f"1 to {len(numbers)}"
    return ", ".join(map(str, numbers))
