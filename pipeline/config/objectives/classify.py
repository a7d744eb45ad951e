"""The options of classification: each sample has one of several classes."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from perceiver_model.families.classifier_config import ClassifierConfig
from pipeline.config.objectives.base import ObjectiveConfig, Tree
from pipeline.config.objectives.views import ViewsConfig


class ClassifyConfig(ObjectiveConfig):
    """Each sample has one of several classes; the loss is the cross-entropy.

    Attributes:
        kind: The name of the objective.
        class_weights: The weight of each class in the loss, by name; a class that is not named has
            weight 1. `balanced` gives each class the weight N / (C n): N training samples, n of
            them of this class, and C classes. Null weighs all samples alike.
        test_time: The views of images and films over which answers are averaged; null answers for
            the input as it is.
    """

    targets: ClassVar = ("class",)
    smooths_labels: ClassVar = True
    mixes_samples: ClassVar = True
    balances_classes: ClassVar = True
    reads_streams: ClassVar = True

    kind: Literal["classify"] = "classify"
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    test_time: ViewsConfig | None = None

    @model_validator(mode="after")
    def _weights_are_positive(self) -> Self:
        if isinstance(self.class_weights, dict):
            for name, weight in self.class_weights.items():
                if not weight > 0:
                    raise ValueError(f"class_weights.{name} is {weight:g}; must be above 0")
        return self

    def model(
        self,
        config: Tree,
        num_classes: int,
        made_with: Mapping[str, Any] | None = None,
    ) -> ClassifierConfig:
        """Return the configuration of a classifier."""
        return config.classifier(num_classes, made_with)
