"""The options of regression: each sample has one or several numbers."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from perceiver_model.config import DecoderConfig
from perceiver_model.families.queries_config import QueriesConfig
from pipeline.config.objectives.base import ObjectiveConfig, Tree
from pipeline.config.objectives.views import ViewsConfig


class RegressConfig(ObjectiveConfig):
    """Each sample has one or several numbers. A decoder reads each from the latents by a query.

    The model predicts standardised numbers: from each one, the mean over the training samples is
    subtracted, and the result is divided by their standard deviation. Metrics and predictions are
    in the units of the targets.

    Attributes:
        kind: The name of the objective.
        loss: `mse` is the squared error, `l1` the absolute error, and `huber` is quadratic up to
            `huber_delta` and linear beyond (Huber 1964). All are of standardised numbers.
        huber_delta: Where the Huber loss becomes linear, in standard deviations.
        test_time: The views of images and films over which answers are averaged; null answers for
            the input as it is.
    """

    targets: ClassVar = ("regression",)
    reads_streams: ClassVar = True

    kind: Literal["regress"] = "regress"
    loss: Literal["mse", "l1", "huber"] = "mse"
    huber_delta: float = Field(default=1.0, gt=0)
    test_time: ViewsConfig | None = None

    def check(self, config: Tree) -> None:
        """Refuse a delta that no loss uses."""
        super().check(config)
        if self.loss != "huber" and self.huber_delta != 1.0:
            raise ValueError(
                f"objective.huber_delta is for loss 'huber'; objective.loss is {self.loss!r}"
            )

    def model(
        self,
        config: Tree,
        num_classes: int,
        made_with: Mapping[str, Any] | None = None,
    ) -> QueriesConfig:
        """Return the configuration of a model with one output query for each number."""
        return QueriesConfig(
            **config.reading(made_with),
            encoder=config.model.encoder,
            decoder=config.model.decoder or DecoderConfig(),
            num_queries=config.data.target.length,
            output_channels=1,
        )
