"""The options of segmentation: every pixel of an image has a class."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from perceiver_model.config import DecoderConfig, FourierConfig
from perceiver_model.families.dense_config import DenseConfig
from pipeline.config.model import Positions
from pipeline.config.objectives.base import ObjectiveConfig, Tree


class SegmentConfig(ObjectiveConfig):
    """Every pixel has a class. A decoder reads each pixel's class by a query for its position.

    Attributes:
        kind: The name of the objective.
        ignored_classes: The names of classes that count neither in the loss nor in the metrics.
            Pixels with the value 255 belong to no class and never count.
        query_positions: The position features of the pixels that are predicted.
        query_tokens: Whether a pixel's query also holds the content of the input token at its
            position. This suits masks with fine borders.
    """

    targets: ClassVar = ("mask",)
    smooths_labels: ClassVar = True

    kind: Literal["segment"] = "segment"
    ignored_classes: tuple[str, ...] = ()
    query_positions: Positions = FourierConfig()
    query_tokens: bool = False

    def check(self, config: Tree) -> None:
        """Refuse masks without classes, and what masks cannot follow."""
        super().check(config)
        classes = config.data.target.classes
        if not classes:
            raise ValueError(
                "objective.kind is 'segment', which needs data.target.classes: the names of the "
                "numbers in the masks, in order"
            )
        if unknown := [name for name in self.ignored_classes if name not in classes]:
            raise ValueError(
                f"objective.ignored_classes names {unknown[0]!r}, which is not in "
                "data.target.classes"
            )
        if config.training.augment.randaugment_layers:
            raise ValueError(
                "training.augment.randaugment_layers moves the pixels of images, and masks do not "
                "move with them; leave it out for objective 'segment'"
            )
        if len(config.data.formats) > 1:
            raise ValueError(
                "objective.kind is 'segment', which reads images alone; data has "
                f"{', '.join(config.data.formats)}"
            )

    def model(
        self,
        config: Tree,
        num_classes: int,
        made_with: Mapping[str, Any] | None = None,
    ) -> DenseConfig:
        """Return the configuration of a model with one output query for each pixel."""
        return DenseConfig(
            **config.reading(made_with),
            encoder=config.model.encoder,
            decoder=config.model.decoder or DecoderConfig(query_residual=False),
            output_channels=num_classes,
            query_positions=self.query_positions,
            query_tokens=self.query_tokens,
        )
