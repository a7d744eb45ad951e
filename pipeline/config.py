"""The configuration tree: typed, frozen, validated once at the edge.

Every section refuses unknown keys and wrong types. :func:`pipeline.load_config.load_config` reads
it from YAML with dotted overrides.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from cluster.ray_session import in_ray_job
from perceiver_model.classifier_config import ClassifierConfig
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.inputs import MediaAdapter
from perceiver_model.multimodal_config import Modality as ModalityModel
from perceiver_model.multimodal_config import MultimodalInput, PaddedModalities
from pipeline.config_study import StudyConfig
from pipeline.config_training import TrainingConfig
from pipeline.media import AudioFormat, ImageFormat, MediaFormat
from pipeline.media.points_format import PointsFormat
from pipeline.media.table_format import TableFormat
from pipeline.media.targets import TargetConfig
from pipeline.media.text import TextFormat
from pipeline.media.video_format import VideoFormat
from pipeline.model_input import fitted_media, model_adapter, model_input
from pipeline.section import Section

Modality = Literal["image", "audio", "video", "points", "text", "table"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


class ColumnsConfig(Section):
    """Columns of a listing, by what they hold.

    Attributes:
        image, audio, video, points: columns of paths (relative to the listing's folder, absolute,
            or URLs), or of the files' bytes where their type is binary.
        text: column of texts themselves.
        key: column that names the samples; where null, their files name them.
        split: column that says ``train``, ``validation`` or ``test``; ``data.validation`` and
            ``data.test`` are then null.
    """

    image: str | None = None
    audio: str | None = None
    video: str | None = None
    points: str | None = None
    text: str | None = None
    key: str | None = None
    split: str | None = None


class DataConfig(Section):
    """Raw media and how they are decoded: at least one of the sections for modalities is given.

    Attributes:
        train: a folder, a listing file (``.csv``, ``.parquet``, ``.jsonl``), or WebDataset tars (a
            ``.tar`` file, a glob or brace range of them, or, by ``layout: tars``, their folder);
            any fsspec URL.
        validation: the same, or the share of the training samples to hold out (stratified by class,
            chosen by ``seed``), or null for none.
        test: as ``train``, or null.
        layout: what the sources are; ``auto`` tells by their names.
        columns: what a listing's columns hold.
        target: what a sample is to be mapped to.
        allow_missing: modalities that a sample may lack.
        max_bad_fraction: the run fails once more than this share of the samples cannot be used.
        samples_per_shard: samples planned for a shard.
        decode_seconds: processor time that decoding may take for one sample.
        decode_memory_mib: memory that decoding may take.
    """

    train: str = Field(min_length=1)
    validation: str | Annotated[float, Field(gt=0, lt=1)] | None = None
    test: str | None = None
    layout: Literal["auto", "folders", "listing", "tars"] = "auto"
    image: ImageFormat | None = None
    audio: AudioFormat | None = None
    video: VideoFormat | None = None
    points: PointsFormat | None = None
    text: TextFormat | None = None
    table: TableFormat | None = None
    columns: ColumnsConfig = ColumnsConfig()
    target: TargetConfig = TargetConfig()
    allow_missing: tuple[Modality, ...] = ()
    max_bad_fraction: float = Field(default=0.5, ge=0, le=1)
    samples_per_shard: int = Field(default=1000, ge=1)
    decode_seconds: float = Field(default=60.0, gt=0)
    decode_memory_mib: int = Field(default=2048, ge=256)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        formats = self.formats
        if not formats:
            raise ValueError(f"give at least one of the sections {', '.join(MODALITIES)}")
        for modality in self.allow_missing:
            if modality not in formats:
                raise ValueError(f"allow_missing names {modality!r}, which has no section")
        if len(formats) == 1 and self.allow_missing:
            raise ValueError("allow_missing: a sample's only modality cannot be missing")
        for modality in MODALITIES[:-1]:
            if getattr(self.columns, modality) and modality not in formats:
                raise ValueError(f"columns.{modality} is given, but not the section {modality!r}")
        if self.target.kind == "mask" and self.image is None:
            raise ValueError("target.kind is 'mask', which needs the section 'image'")
        if self.columns.split and (self.validation is not None or self.test is not None):
            raise ValueError("columns.split names the splits; leave validation and test null")
        return self

    @property
    def formats(self) -> dict[Modality, MediaFormat]:
        """The formats given, by modality, in the order of `MODALITIES`."""
        given = ((modality, getattr(self, modality)) for modality in MODALITIES)
        return {modality: fmt for modality, fmt in given if fmt is not None}

    @property
    def media(self) -> MediaFormat:
        """The format of the one modality. Raises ValueError where there are several."""
        return self.one_of(self.formats)

    @staticmethod
    def one_of(formats: Mapping[Modality, MediaFormat]) -> MediaFormat:
        """The only one. Raises ValueError where there are several."""
        if len(formats) > 1:
            raise ValueError(f"data has several modalities: {', '.join(formats)}")
        return next(iter(formats.values()))


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
    """The Perceiver; its input's shape follows from ``data``, its classes from the shards.

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


class ClusterConfig(Section):
    """Where it runs.

    Attributes:
        address: null starts Ray on this machine for this command alone; ``auto`` joins the cluster
            that runs here, ``host:port`` or ``ray://host:port`` another.
        num_workers: training processes; 0 trains in the calling process, without Ray.
        cpus_per_worker: CPUs that each training process reserves.
        use_gpu: one GPU for each training process.
        max_failures: how often a training is restarted from its last checkpoint after a worker or
            a machine is lost.
    """

    address: str | None = None
    num_workers: int = Field(default=1, ge=0)
    cpus_per_worker: int = Field(default=1, ge=1)
    use_gpu: bool = False
    max_failures: int = Field(default=0, ge=0)


class TrackingConfig(Section):
    """MLflow.

    Attributes:
        uri: tracking server or database; null is SQLite in the output folder.
        experiment: name of the MLflow experiment; null takes the configuration's ``name``.
        system_metrics: log CPU, memory and GPU use of every machine.
        system_metrics_seconds: how often.
    """

    uri: str | None = None
    experiment: str | None = None
    system_metrics: bool = True
    system_metrics_seconds: float = Field(default=5.0, gt=0)


class RegistryConfig(Section):
    """The name under which the model is registered in MLflow, and the alias to move there."""

    model_name: str = "perceiver"
    alias: str = "champion"


class Config(Section):
    """The whole tree.

    Attributes:
        name: names the run folder ``output/name`` and the MLflow experiment.
        output: the one folder that everything is written to; made absolute, since Ray's workers
            have working directories of their own.
        seed: of splits, order, augmentation and initial weights.
        shards: folder or URL of the shard set; null is ``output/name/shards``.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: str = Field(default="runs", validate_default=True)
    seed: int = Field(default=0, ge=0)
    shards: str | None = None
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    study: StudyConfig | None = None
    registry: RegistryConfig = RegistryConfig()

    @field_validator("output")
    @classmethod
    def _output_is_a_folder(cls, output: str) -> str:
        if "://" in output:
            raise ValueError(f"is {output!r}; give a folder (on a cluster, one that all share)")
        if in_ray_job() and not Path(output).expanduser().is_absolute():
            raise ValueError(
                f"is {output!r}, and a Ray job runs in a temporary copy of the working directory; "
                "give an absolute path that all machines share, output=/…"
            )
        return absolute(output)

    @field_validator("shards")
    @classmethod
    def _shards_are_absolute(cls, shards: str | None) -> str | None:
        return shards and absolute(shards)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        try:
            self.classifier(num_classes=2)
        except ValueError as error:
            raise ValueError(f"model: {error}") from None
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
        if self.cluster.num_workers:
            self.micro_batch_size(self.cluster.num_workers)
        return self

    @property
    def folder(self) -> Path:
        """Absolute ``output/name``: everything this configuration writes, MLflow's part aside."""
        return Path(self.output) / self.name

    @property
    def shards_folder(self) -> str:
        """Folder or URL of the shard set."""
        return self.shards or str(self.folder / "shards")

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI."""
        return self.tracking.uri or default_tracking_uri(self.output)

    def micro_batch_size(self, world_size: int) -> int:
        """Samples that one worker takes in one forward pass.

        Raises:
            ValueError: the batch does not divide among the workers and accumulation steps.
        """
        parts = world_size * self.training.gradient_accumulation_steps
        if self.training.batch_size % parts:
            raise ValueError(
                f"training.batch_size is {self.training.batch_size}; it must be a multiple of "
                f"workers x gradient_accumulation_steps = {parts}"
            )
        return self.training.batch_size // parts

    def classifier(
        self, num_classes: int, made_with: Mapping[str, Any] | None = None
    ) -> ClassifierConfig:
        """The model's own configuration, its input taken from ``data``.

        Args:
            made_with: the configuration in the shard set's manifest, for what a table's training
                rows told; None for a model of the same shape that cannot read a table's values.

        Raises:
            ValueError: the model cannot read such data.
        """
        model, formats = self.model, self.data.formats
        if made_with is not None:
            formats = {name: fitted_media(fmt, made_with) for name, fmt in formats.items()}
        rest: dict[str, Any] = {
            "encoder": model.encoder,
            "decoder": model.decoder,
            "num_classes": num_classes,
        }
        if not model.modalities:
            if model.adapter is None:
                raise ValueError("adapter is missing; of several modalities, give modalities")
            return ClassifierConfig(**self._reading(self.data.one_of(formats), model), **rest)
        if model.adapter is not None:
            raise ValueError("adapter and modalities are both given; each modality has its own")
        if set(model.modalities) != set(formats):
            raise ValueError(f"modalities: name those of data, which are {', '.join(formats)}")
        parts = {
            str(name): ModalityModel(
                **self._reading(fmt, model.modalities[name]),
                dropout=model.modalities[name].dropout,
            )
            for name, fmt in formats.items()
        }
        return ClassifierConfig(
            input=MultimodalInput(modalities=parts),
            adapter=PaddedModalities(),
            positions=None,
            **rest,
        )

    def _reading(self, media: MediaFormat, part: "ModelConfig | ModalityConfig") -> dict[str, Any]:
        """Input, adapter and positions of one modality."""
        assert part.adapter is not None
        # A tree that was written and read again names the default, too.
        if part.adapter.holds_positions and part.positions != FourierConfig():
            raise ValueError(
                f"positions are given, but adapter {part.adapter.kind!r} holds its own; leave "
                "them out"
            )
        mean, std = self.model.pixel_mean, self.model.pixel_std
        return {
            "input": model_input(media, pixel_mean=mean, pixel_std=std),
            "adapter": model_adapter(media, part.adapter),
            "positions": None if part.adapter.holds_positions else part.positions,
        }

    def tree(self) -> dict[str, Any]:
        """The tree in JSON's types."""
        return self.model_dump(mode="json")


def default_tracking_uri(output: str) -> str:
    """SQLite in the output folder."""
    return f"sqlite:///{absolute(output)}/mlflow.db"


def absolute(path: str) -> str:
    """A local path made absolute; a URL as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())
