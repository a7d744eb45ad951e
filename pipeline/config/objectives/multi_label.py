"""The options of multi-label classification: each sample has any number of labels."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from perceiver_model.families.classifier_config import ClassifierConfig
from pipeline.config.objectives.base import ObjectiveConfig, Tree
from pipeline.config.objectives.views import ViewsConfig


class MultiLabelConfig(ObjectiveConfig):
    """Each sample has any number of labels. The loss is the binary cross-entropy of each label.

    Attributes:
        kind: The name of the objective.
        threshold: A registered model gives an input the labels whose probability is at least this.
        test_time: The views of images and films over which answers are averaged; null answers for
            the input as it is.
    """

    targets: ClassVar = ("multi_label",)
    mixes_samples: ClassVar = True

    kind: Literal["multi_label"] = "multi_label"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    test_time: ViewsConfig | None = None

    def model(
        self,
        config: Tree,
        num_classes: int,
        made_with: Mapping[str, Any] | None = None,
    ) -> ClassifierConfig:
        """Return the configuration of a classifier with one output for each label."""
        return config.classifier(num_classes, made_with)
