"""The configuration tree: typed, frozen, validated once at the edge.

Every section refuses unknown keys and wrong types. :func:`pipeline.load_config.load_config` reads
it from YAML with dotted overrides.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from perceiver_model.config import (
    AdapterConfig,
    AudioInput,
    ClassifierConfig,
    EncoderConfig,
    FourierConfig,
    ImageInput,
)
from pipeline.media import AudioFormat, ImageFormat, MediaFormat


class Section(BaseModel):
    """Base of every section: frozen, strictly typed, closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class DataConfig(Section):
    """Raw media and how they are decoded. Exactly one of ``image`` and ``audio`` is given.

    Attributes:
        train: folder with one folder of files for each class; any fsspec URL.
        validation: a folder of the same kind, or the share of the training files to hold out
            (stratified by class, chosen by ``seed``), or null for none.
        test: a folder of the same kind, or null.
        max_bad_fraction: the run fails once more than this share of the files cannot be used.
        samples_per_shard: files planned for a shard.
    """

    train: str = Field(min_length=1)
    validation: str | Annotated[float, Field(gt=0, lt=1)] | None = None
    test: str | None = None
    image: ImageFormat | None = None
    audio: AudioFormat | None = None
    max_bad_fraction: float = Field(default=0.5, ge=0, le=1)
    samples_per_shard: int = Field(default=1000, ge=1)

    @model_validator(mode="after")
    def _one_modality(self) -> Self:
        if (self.image is None) == (self.audio is None):
            raise ValueError("give exactly one of the sections 'image' and 'audio'")
        return self

    @property
    def media(self) -> MediaFormat:
        """The format of the one modality."""
        media = self.image or self.audio
        assert media is not None
        return media


class ModelConfig(Section):
    """The Perceiver; its input's shape follows from ``data``, its classes from the shards.

    Attributes:
        pixel_mean, pixel_std: standardisation of pixels scaled to [0, 1]: one value, or one for
            each channel; images only.
    """

    adapter: Annotated[AdapterConfig, Field(discriminator="kind")]
    fourier: FourierConfig = FourierConfig()
    encoder: EncoderConfig = EncoderConfig()
    pixel_mean: tuple[float, ...] = (0.5,)
    pixel_std: tuple[float, ...] = (0.5,)


class ScheduleConfig(Section):
    """Learning rate over training, in epochs.

    ``cosine`` rises linearly for ``warmup_epochs``, then falls to 0 on a cosine. ``flat_cosine``
    (Perceiver IO, appendix H) holds for ``flat_epochs`` after the warm-up before it falls.
    """

    kind: Literal["cosine", "flat_cosine"] = "cosine"
    warmup_epochs: float = Field(default=1.0, ge=0)
    flat_epochs: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _flat_part_is_meant(self) -> Self:
        if self.kind == "cosine" and self.flat_epochs:
            raise ValueError("flat_epochs is for kind flat_cosine; the kind is cosine")
        return self


class AugmentConfig(Section):
    """Random changes to training inputs, a pure function of (seed, epoch, step).

    Attributes:
        shift_pixels: images move by up to this many pixels each way.
        rotate_degrees: images turn by up to this many degrees each way.
        scale: images grow or shrink by a factor drawn from this range.
        flip: images are mirrored left to right with probability 1/2.
        crop_area: share of the image's area that a random crop keeps, aspect ratio 3/4 to 4/3.
        shift_seconds: sounds move by up to this many seconds each way.
        gain_db: sounds grow louder or softer by up to this many decibels.
    """

    shift_pixels: float = Field(default=0.0, ge=0)
    rotate_degrees: float = Field(default=0.0, ge=0, le=180)
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    crop_area: tuple[float, float] = (1.0, 1.0)
    shift_seconds: float = Field(default=0.0, ge=0)
    gain_db: float = Field(default=0.0, ge=0, le=60)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name, (low, high) in (("scale", self.scale), ("crop_area", self.crop_area)):
            if not 0 < low <= high:
                raise ValueError(f"{name} is [{low}, {high}]; 0 < low <= high is needed")
        if self.crop_area[1] > 1:
            raise ValueError(f"crop_area ends at {self.crop_area[1]}; 1 is the whole image")
        return self


class TrainingConfig(Section):
    """One training.

    Attributes:
        batch_size: samples in one optimizer step, over all workers and accumulation steps; it is
            the same training whatever the number of workers.
        gradient_accumulation_steps: forward and backward passes in one optimizer step.
        gradient_clipping: greatest norm of the whole gradient, or null.
        precision: ``bf16`` computes matrix products in bfloat16 (autocast) and keeps weights,
            gradients and optimizer state in float32.
        zero_stage: DeepSpeed ZeRO: 1 shares optimizer state among the workers, 2 gradients as
            well, 3 weights as well.
        checkpoint_steps: also save within an epoch, every so many optimizer steps; or null.
        loader_workers: processes that read and decode for each training worker; 0 reads in the
            worker itself.
    """

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    gradient_clipping: float | None = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    precision: Literal["float32", "bf16"] = "float32"
    zero_stage: Literal[0, 1, 2, 3] = 2
    checkpoint_steps: int | None = Field(default=None, ge=1)
    log_steps: int = Field(default=10, ge=1)
    loader_workers: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        taken = self.schedule.warmup_epochs + self.schedule.flat_epochs
        if taken >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs + schedule.flat_epochs is {taken:g}, but there are only "
                f"{self.epochs} epochs and none would be left for the cosine"
            )
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas holds {beta}; each must be at least 0 and below 1")
        return self


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


class SpaceConfig(Section):
    """The values a searched field may take: exactly one of the three.

    Attributes:
        choice: one of a list.
        uniform: a number between two bounds, drawn uniformly.
        loguniform: a number between two positive bounds, its logarithm drawn uniformly.
    """

    choice: tuple[int | float | str | bool, ...] | None = Field(default=None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.choice, self.uniform, self.loguniform)) != 1:
            raise ValueError("give exactly one of 'choice', 'uniform' and 'loguniform'")
        if self.choice is None:
            low, high = self.bounds
            if not low < high:
                raise ValueError(f"is [{low:g}, {high:g}]; low < high is needed")
            if self.loguniform and low <= 0:
                raise ValueError(f"is [{low:g}, {high:g}]; a logarithm needs 0 < low")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Low and high of ``uniform`` or ``loguniform``."""
        bounds = self.uniform or self.loguniform
        assert bounds is not None
        return bounds


class StudyConfig(Section):
    """A Ray Tune study over the fields named in ``space``.

    Attributes:
        space: dotted field of this configuration → ``{choice: […]}``, ``{uniform: [low, high]}``
            or ``{loguniform: [low, high]}``.
        search: ``grid`` runs every combination of the choices; ``random`` draws ``num_trials``.
        epochs: epochs of a trial; null takes ``training.epochs``.
        num_workers: training processes of each trial.
        max_concurrent_trials: trials at once; null takes as many as the CPUs or GPUs hold.
        grace_epochs, reduction_factor: ASHA compares trials after ``grace_epochs`` epochs, and
            again at each multiple by ``reduction_factor``, and stops all but the best
            ``1 / reduction_factor``.
    """

    space: dict[str, SpaceConfig] = Field(min_length=1)
    search: Literal["grid", "random"] = "random"
    num_trials: int = Field(default=8, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    num_workers: int = Field(default=1, ge=1)
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    grace_epochs: int = Field(default=1, ge=1)
    reduction_factor: int = Field(default=2, ge=2)

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        for path, space in self.space.items():
            if self.search == "grid" and space.choice is None:
                raise ValueError(f"space.{path}: search 'grid' needs {{choice: […]}}")
        return self


class RegistryConfig(Section):
    """The name under which the model is registered in MLflow, and the alias to move there."""

    model_name: str = "perceiver"
    alias: str = "champion"


class Config(Section):
    """The whole tree.

    Attributes:
        name: names the run folder ``output/name`` and the MLflow experiment.
        output: the one folder that everything is written to.
        seed: of splits, order, augmentation and initial weights.
        shards: the shard set; null is ``output/name/shards``.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: str = "runs"
    seed: int = Field(default=0, ge=0)
    shards: str | None = None
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    study: StudyConfig | None = None
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        try:
            self.classifier(num_classes=2)
        except ValueError as error:
            raise ValueError(f"model: {error}") from None
        if self.cluster.num_workers:
            self.micro_batch_size(self.cluster.num_workers)
        if "://" in self.output:
            raise ValueError(
                f"output is {self.output!r}; give a folder (on a cluster, one that all share)"
            )
        return self

    @property
    def folder(self) -> Path:
        """Absolute ``output/name``: everything this configuration writes, MLflow's part aside."""
        return Path(self.output).expanduser().absolute() / self.name

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

    def classifier(self, num_classes: int) -> ClassifierConfig:
        """The model's own configuration, its input taken from ``data``."""
        media = self.data.media
        if isinstance(media, ImageFormat):
            source: ImageInput | AudioInput = ImageInput(
                height=media.height,
                width=media.width,
                channels=media.channels,
                mean=self.model.pixel_mean,
                std=self.model.pixel_std,
            )
        else:
            source = AudioInput(sample_rate=media.sample_rate, num_samples=media.num_samples)
        return ClassifierConfig(
            input=source,
            adapter=self.model.adapter,
            fourier=self.model.fourier,
            encoder=self.model.encoder,
            num_classes=num_classes,
        )

    def tree(self) -> dict[str, Any]:
        """The tree in JSON's types."""
        return self.model_dump(mode="json")


def default_tracking_uri(output: str) -> str:
    """SQLite in the output folder."""
    return f"sqlite:///{Path(output).expanduser().absolute() / 'mlflow.db'}"


def canonical_json(value: Any) -> str:
    """One text for equal values: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """sha256 (hex) of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections to dotted paths: ``{"training.epochs": 10, …}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
