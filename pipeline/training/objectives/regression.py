"""Regression: each sample has one or several numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F

from perceiver_model.families.queries import QueryPredictor
from perceiver_model.families.queries_config import QueriesConfig
from pipeline.training.objectives.answers import Shown
from pipeline.training.objectives.base import Objective, read_names
from pipeline.training.objectives.batch import Batch
from pipeline.training.objectives.input_views import InputViews, card_of
from pipeline.training.objectives.prediction import Prediction

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from pipeline.config.data import TargetConfig
    from pipeline.config.tree import Config
    from shards import ShardSet

LOSSES = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
}


@dataclass(frozen=True)
class Numbers(Prediction):
    """The numbers of one input.

    Attributes:
        source: The same as in `ClassPrediction`.
        values: The numbers by name, in the units of the training's targets. The names are those of
            `data.target.columns`. Several numbers of one column are called `COLUMN_1`, `COLUMN_2`
            and so on.
        error: Why the input cannot be used; None if it can.
    """

    flat: ClassVar = ("values",)
    source: str
    values: dict[str, float] | None
    error: str | None


@dataclass(frozen=True)
class Regression(Objective):
    """Train on standardised numbers, and select by the mean absolute error in their own units.

    The outputs of `outputs` are standardised: `[batch, numbers]`.

    Attributes:
        model_config: The model's configuration.
        names: The names of the numbers.
        means: The mean of each number over the training samples.
        stds: The standard deviation of each number over the training samples; 1 where it is 0.
        loss: A name in `LOSSES`.
        huber_delta: Where the Huber loss becomes linear, in standard deviations.
        test_time: The views over which answers are averaged; None for none.
    """

    name: ClassVar = "regress"
    target: ClassVar = "regression"
    prediction: ClassVar = Numbers
    metrics: ClassVar = ("mae",)
    num_sums: ClassVar = 1
    selection: ClassVar = "mae"
    higher_is_better: ClassVar = False
    worst: ClassVar = math.inf
    card_fields: ClassVar = frozenset({"model", "names", "means", "stds"})
    optional_card_fields: ClassVar = frozenset({"test_time"})

    model_config: QueriesConfig
    names: tuple[str, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    loss: str = "mse"
    huber_delta: float = 1.0
    test_time: InputViews | None = None

    @classmethod
    def of(cls, config: "Config", shard_set: "ShardSet") -> Self:
        """Return the objective, with the statistics of the training samples.

        Raises:
            UserError: No training sample can be read.
        """
        from pipeline.training.target_statistics import target_statistics

        options, target = config.trained_for, config.data.target
        assert options is not None
        model = options.model(config, 0, shard_set.manifest.config)
        means, stds = target_statistics(shard_set, config.folder)
        names = names_of_values(target)
        return cls(
            model,
            names,
            means,
            stds,
            getattr(options, "loss", "mse"),
            getattr(options, "huber_delta", 1.0),
            InputViews.of(options),
        )

    @classmethod
    def from_card(cls, values: Mapping[str, Any]) -> Self:
        """Return the objective of a registered model.

        Raises:
            ValueError: The counts of names, statistics and outputs differ, or a statistic is wrong.
        """
        model = QueriesConfig.from_dict(values["model"])
        names = read_names(values["names"])
        means, stds = (tuple(map(float, values[key])) for key in ("means", "stds"))
        if not len(names) == len(means) == len(stds) == model.num_queries:
            raise ValueError(
                f"{len(names)} names, {len(means)} means and {len(stds)} stds for "
                f"{model.num_queries} outputs"
            )
        if model.output_channels != 1 or not all(std > 0 for std in stds):
            raise ValueError(
                "an output is no single number, or a standard deviation is not above 0"
            )
        views = InputViews.from_card(values.get("test_time"), model.input)
        return cls(model, names, means, stds, test_time=views)

    def to_card(self) -> dict[str, Any]:
        """Return the model's configuration, the names and the statistics."""
        return {
            "model": self.model_config.to_dict(),
            "names": list(self.names),
            "means": list(self.means),
            "stds": list(self.stds),
            **card_of(self.test_time),
        }

    def build_model(self, positions: torch.Tensor | None = None) -> QueryPredictor:
        """Return a model with new weights."""
        return QueryPredictor(self.model_config, positions=positions)

    def outputs(self, model: Any, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the standardised numbers, `[batch, numbers]`; with views, their means."""
        if training or self.test_time is None:
            found: torch.Tensor = model(batch.inputs, batch.mask)
        else:
            found = self.test_time.stack(model, batch, self.model_config.input).mean(dim=0)
        return found.squeeze(-1)

    def stream_outputs(
        self, model: Any, batch: Batch, state: torch.Tensor | None, starts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the standardised numbers after one part of each recording, and the latents."""
        found, latents = model(
            batch.inputs, batch.mask, state=state, starts=starts, return_state=True
        )
        return found.squeeze(-1), latents

    def losses(self, outputs: torch.Tensor, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the mean loss of each sample's standardised numbers, `[batch]`."""
        options = {"delta": self.huber_delta} if self.loss == "huber" else {}
        targets = self._standardised(batch.targets)
        losses: torch.Tensor = LOSSES[self.loss](outputs, targets, reduction="none", **options)  # type: ignore[operator]  # the three have different keywords
        return losses.mean(dim=1)

    def sums(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the sum of the samples' absolute errors, `[1]`."""
        return (self._absolute_errors(outputs, batch) * batch.weights).sum().unsqueeze(0)

    def metric_values(self, sums: Sequence[float], weight: float) -> tuple[float, ...]:
        """Return the mean absolute error, in the units of the targets."""
        return (sums[0] / weight,)

    def measures(self) -> "MetricCollection":
        """Return the root of the mean squared error, and R², of all numbers together."""
        from torchmetrics import MeanSquaredError, MetricCollection

        from pipeline.training.objectives.r2_score import ShiftedR2Score

        shifted = ShiftedR2Score(self.means)
        return MetricCollection({"rmse": MeanSquaredError(squared=False), "r2": shifted})

    def measured(self, outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the predicted and true numbers of the good samples, in float64."""
        return self._in_own_units(outputs[batch.good]), batch.targets[batch.good].double()

    def shown(self, outputs: torch.Tensor, batch: Batch) -> list[Shown]:
        """Return the true and the predicted numbers by name."""
        true, answers = batch.targets.double().tolist(), self._in_own_units(outputs).tolist()
        return [
            Shown(
                dict(zip(self.names, row, strict=True)), dict(zip(self.names, answer, strict=True))
            )
            for row, answer in zip(true, answers, strict=True)
        ]

    def predictions(self, outputs: torch.Tensor, sources: Sequence[str]) -> list[Prediction]:
        """Return the numbers in the units of the targets."""
        rows = self._in_own_units(outputs).tolist()
        return [
            Numbers(source, dict(zip(self.names, row, strict=True)), None)
            for source, row in zip(sources, rows, strict=True)
        ]

    def sample_values(
        self, outputs: torch.Tensor, batch: Batch, classes: tuple[str, ...]
    ) -> np.ndarray:
        """Return the mean absolute error of each sample."""
        return self._absolute_errors(outputs, batch).double().cpu().numpy()

    def _absolute_errors(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return (self._in_own_units(outputs) - batch.targets.double()).abs().mean(dim=1)

    def _standardised(self, targets: torch.Tensor) -> torch.Tensor:
        means, stds = self._statistics(targets.device)
        return ((targets.double() - means) / stds).float()

    def _in_own_units(self, outputs: torch.Tensor) -> torch.Tensor:
        means, stds = self._statistics(outputs.device)
        return outputs.double() * stds + means

    def _statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        means = torch.tensor(self.means, dtype=torch.float64, device=device)
        return means, torch.tensor(self.stds, dtype=torch.float64, device=device)


def names_of_values(target: "TargetConfig") -> tuple[str, ...]:
    """Return the names of the numbers of a target, from the section `data.target`."""
    return target.columns or _numbered(target.column or "value", target.length)


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return (name,) if count == 1 else tuple(f"{name}_{n + 1}" for n in range(count))
