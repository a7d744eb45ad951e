"""The base of every section `objective`."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from perceiver_model.families.classifier_config import ClassifierConfig
from pipeline.config.base import ConfigBase
from pipeline.config.data import DataConfig
from pipeline.config.model import ModelConfig
from pipeline.config.training import TrainingConfig


class Tree(Protocol):
    """What an objective reads of the whole configuration, `pipeline.config.tree.Config`."""

    @property
    def data(self) -> DataConfig:
        """The section `data`."""

    @property
    def model(self) -> ModelConfig:
        """The section `model`."""

    @property
    def training(self) -> TrainingConfig:
        """The section `training`."""

    def reading(self, made_with: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the input, the adapter and the positions of the model's configuration."""

    def classifier(
        self, num_classes: int, made_with: Mapping[str, Any] | None = None
    ) -> ClassifierConfig:
        """Return the configuration of a classifier of the data."""


class ObjectiveConfig(ConfigBase):
    """What a model is trained for: the options of one objective.

    A subclass has the field `kind`, a literal of its name in
    `pipeline.training.objectives.OBJECTIVES`, where its loss and metrics are. Each other field
    needs a default value.

    Attributes:
        targets: The kinds of `data.target` that the objective is trained on.
        smooths_labels: Whether the objective uses `training.label_smoothing`.
        mixes_samples: Whether the objective has a loss for mixed samples (`training.augment.mixup`,
            `cutmix`).
        balances_classes: Whether the samples have classes that `training.balance_classes` can draw
            evenly.
        reads_streams: Whether the objective reads recordings as streams (`training.stream`).
        is_autoregressive: Whether the model is a Perceiver AR, from `model.autoregressive`.
    """

    targets: ClassVar[tuple[str, ...]]
    smooths_labels: ClassVar[bool] = False
    mixes_samples: ClassVar[bool] = False
    balances_classes: ClassVar[bool] = False
    reads_streams: ClassVar[bool] = False
    is_autoregressive: ClassVar[bool] = False
    kind: str = ""

    def check_text_alone(self, config: Tree) -> None:
        """Refuse data that are not texts alone, and masked bytes, which are the model's targets.

        Raises:
            ValueError: The data have another modality, or `training.augment.mask_bytes` is given.
        """
        if list(config.data.formats) != ["text"]:
            raise ValueError(
                f"objective.kind is {self.kind!r}, which reads texts alone; data has "
                f"{', '.join(config.data.formats)}"
            )
        if config.training.augment.mask_bytes:
            raise ValueError(
                f"training.augment.mask_bytes is {config.training.augment.mask_bytes:g}, but "
                f"objective {self.kind!r} learns from every byte of a text; leave it out"
            )

    @abstractmethod
    def model(
        self,
        config: Tree,
        num_classes: int,
        made_with: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the model's configuration, from `perceiver_model.families`.

        Args:
            config: The whole configuration.
            num_classes: The number of classes of the shard set. A configuration is checked with 2
                before a set exists.
            made_with: The configuration in the manifest of the shard set, as for `Config.reading`.

        Raises:
            ValueError: The model cannot read such data. The text names fields of `model` or
                `objective`.
        """

    def check(self, config: Tree) -> None:
        """Refuse a configuration that the objective cannot be trained with.

        A subclass calls this first.

        Raises:
            ValueError: The text names the fields that do not fit.
        """
        kind = config.data.target.kind
        if kind not in self.targets:
            needed = " or ".join(map(repr, self.targets))
            raise ValueError(
                f"objective.kind is {self.kind!r}, which needs data.target.kind {needed}; "
                f"it is {kind!r}"
            )
        if config.model.autoregressive is not None and not self.is_autoregressive:
            raise ValueError(
                f"model.autoregressive is for objective 'autoregressive'; objective.kind is "
                f"{self.kind!r}"
            )
        if config.training.label_smoothing and not self.smooths_labels:
            raise ValueError(
                f"training.label_smoothing is {config.training.label_smoothing:g}, which objective "
                f"{self.kind!r} does not use; leave it out"
            )
        if getattr(self, "test_time", None) is not None:
            self._check_views(config)
        if config.training.balance_classes and not self.balances_classes:
            raise ValueError(
                f"training.balance_classes is {config.training.balance_classes:g}, which objective "
                f"{self.kind!r} does not use; leave it out"
            )

    def _check_views(self, config: Tree) -> None:
        """Refuse test-time augmentation of data that it does not change, and of streams."""
        if not {"image", "video"} & config.data.formats.keys():
            raise ValueError(
                "objective.test_time changes images and films; data has "
                f"{', '.join(config.data.formats)}"
            )
        if config.training.stream is not None:
            raise ValueError("objective.test_time does not take training.stream; leave one out")
