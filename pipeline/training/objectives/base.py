"""The base of every objective: its model, loss, metrics and predictions."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from perceiver_model.flops import forward_flops, num_parameters, num_tokens, recomputed_flops
from pipeline.inputs.collate import BatchInputs, BatchMask
from pipeline.training.objectives.answers import ClassAnswers, Shown
from pipeline.training.objectives.batch import Batch
from pipeline.training.objectives.prediction import Prediction, answer_of

if TYPE_CHECKING:  # these do not travel with a registered model
    from torchmetrics import MetricCollection

    from pipeline.config.tree import Config
    from shards import ShardSet

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""The same as in `shards.plain`, which a registered model does not carry."""


class Objective(ABC):
    """What a model is trained for.

    An instance belongs to one model: it knows the model's configuration and what its outputs mean.
    It is made from a training's configuration, or from the card of a registered model, which
    carries this package. At run time the package imports only `perceiver_model`, `pipeline.inputs`
    and `pipeline.media`.

    Attributes:
        name: The name in cards and results, and the `kind` of its options.
        target: The `data.target.kind` that the model is trained on.
        prediction: The class of one prediction.
        metrics: The names of the metrics that are computed from sums, besides the loss. Runs log
            them as `train_NAME` and `val_NAME`.
        num_sums: The number of sums from which `metrics` are computed.
        selection: The metric that selects a checkpoint and a trial. It is one of `metrics`, or
            `measures` has it.
        sample_metric: The metric whose value for each single sample a promotion compares; by
            default `selection`. It has a name of its own, `sample_NAME`, if its mean over samples
            is not the value of `selection`.
        higher_is_better: Whether a higher value of `selection` is better.
        worst: The value of `sample_metric` for a sample that the model cannot answer. If it is
            infinite, a promotion leaves out samples that cannot be read.
        is_right_or_wrong: Whether each sample's value of `sample_metric` is 0 or 1.
        graph_refusal: Why the outputs cannot be exported as one graph; None if they can.
        card_fields: The fields of a card besides the format of the media.
        optional_card_fields: Further fields that a card may have.
        model_config: The model's own configuration, from `perceiver_model.families`.
    """

    name: ClassVar[str]
    target: ClassVar[str]
    prediction: ClassVar[type[Prediction]]
    metrics: ClassVar[tuple[str, ...]] = ()
    num_sums: ClassVar[int] = 0
    selection: ClassVar[str]
    sample_metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    worst: ClassVar[float]
    is_right_or_wrong: ClassVar[bool] = False
    graph_refusal: ClassVar[str | None] = None
    card_fields: ClassVar[frozenset[str]]
    optional_card_fields: ClassVar[frozenset[str]] = frozenset()
    model_config: Any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not hasattr(cls, "sample_metric") and hasattr(cls, "selection"):
            cls.sample_metric = cls.selection

    # --- the model ---

    @classmethod
    @abstractmethod
    def of(cls, config: "Config", shard_set: "ShardSet") -> Self:
        """Return the objective of a training.

        Args:
            config: The whole configuration.
            shard_set: The shard set. Its manifest names the classes.

        Raises:
            ValueError: The model cannot read such data.
        """

    @classmethod
    @abstractmethod
    def from_card(cls, values: Mapping[str, Any]) -> Self:
        """Return the objective of a registered model. This is the inverse of `to_card`.

        Args:
            values: The fields `card_fields`, and some of `optional_card_fields`, in JSON types.
                They are untrusted.

        Raises:
            ValueError, TypeError, KeyError: A value is missing, is wrong, or contradicts another
                one.
        """

    @abstractmethod
    def to_card(self) -> dict[str, Any]:
        """Return the fields `card_fields`, in JSON types."""

    @abstractmethod
    def build_model(self, positions: torch.Tensor | None = None) -> nn.Module:
        """Return a model with new weights.

        Args:
            positions: The Fourier position table, floating-point `[tokens, channels]`. None
                computes it.
        """

    def forward_flops(self) -> int:
        """Return the FLOPs of one forward pass of one sample."""
        return forward_flops(self.model_config)

    def recomputed_flops(self, share: float) -> int:
        """Return the FLOPs of one sample that activation checkpointing computes again.

        Args:
            share: As `training.activation_checkpointing`.
        """
        return recomputed_flops(self.model_config, share)

    def num_tokens(self) -> int:
        """Return the number of tokens of one sample that the cross-attends read."""
        return num_tokens(self.model_config)

    def num_parameters(self) -> int:
        """Return the number of the model's parameters, trained or not."""
        with torch.device("meta"):
            return num_parameters(self.build_model())

    # --- training and evaluation ---

    def outputs(self, model: Any, batch: Batch, *, training: bool) -> Any:
        """Return the model's outputs for a batch. For most objectives this is one tensor.

        Args:
            model: The module, or DeepSpeed's engine around it.
            batch: The samples.
            training: False in evaluations, which draw no random numbers.
        """
        return model(batch.inputs, batch.mask)

    def stream_outputs(
        self, model: Any, batch: Batch, state: torch.Tensor | None, starts: torch.Tensor
    ) -> tuple[Any, torch.Tensor]:
        """Return the outputs for one part of each recording, and the latents after it.

        Only objectives whose options have `reads_streams` define this.

        Args:
            model: The module, or DeepSpeed's engine around it.
            batch: The parts.
            state: The latents after the previous parts, `[batch, num_latents, latent_dim]`; None
                if there are none.
            starts: Which samples start from the learned latents all the same, bool `[batch]`.

        Returns:
            The outputs, as from `outputs`, and latents of the shape of `state`.
        """
        raise NotImplementedError

    @abstractmethod
    def losses(self, outputs: Any, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the loss of each sample, floating-point `[batch]`.

        Args:
            outputs: The model's outputs, from `outputs`.
            batch: The samples.
            training: False in evaluations.

        Returns:
            Floating-point `[batch]`. For samples of weight 0, any finite value is fine.
        """

    def loss_weights(self, batch: Batch) -> torch.Tensor:
        """Return each sample's weight in the mean of the losses, float32 `[batch]`."""
        return batch.weights

    def weights_are_stored(self, *, mixed: bool) -> bool:
        """Return whether `loss_weights` are the same before and after augmentation.

        They are if they depend on nothing but the batch's `weights`, `targets` and
        `target_lengths`, and augmentation does not change these. Then the workers add up the
        weights ahead of a step; else they do so within it.

        Args:
            mixed: Whether samples are mixed (`training.augment.mixup` or `cutmix`).
        """
        return type(self).loss_weights is Objective.loss_weights

    def sums(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Return the sums from which the metrics are computed.

        Args:
            outputs: The model's outputs, from `outputs`.
            batch: The samples.

        Returns:
            Floating-point `[num_sums]`. The sums are added over batches and workers, so they must
                leave out samples of weight 0.
        """
        return batch.weights.new_zeros(0)

    def metric_values(self, sums: Sequence[float], weight: float) -> tuple[float, ...]:
        """Return the values of `metrics`, in order.

        Args:
            sums: The sums over all batches.
            weight: The sum of all `loss_weights`, at least 1.
        """
        return ()

    def measures(self) -> "MetricCollection | None":
        """Return the metrics that only an evaluation computes, without any sample yet.

        Each is a metric of torchmetrics that gives one number, and joins what the workers have
        seen. They are logged as `val_NAME`. None if there are none.
        """
        return None

    def measured(self, outputs: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `measures` are updated with: predictions and targets of the good samples.

        Args:
            outputs: The model's outputs, from `outputs`.
            batch: The samples.
        """
        raise NotImplementedError

    # --- a report on an evaluation ---

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes or labels; empty if there are none, or they have no names."""
        return ()

    def class_answers(self, outputs: Any, batch: Batch) -> ClassAnswers | None:
        """Return the classes of all items that count; None if the objective has no classes.

        Args:
            outputs: The model's outputs, from `outputs`.
            batch: The samples.
        """
        return None

    def shown(self, outputs: Any, batch: Batch) -> list[Shown]:
        """Return each sample's target and answer, for people.

        Args:
            outputs: The model's outputs, from `outputs`.
            batch: The samples.
        """
        found = self.predictions(outputs, [""] * len(batch.weights))
        return [Shown(None, answer_of(prediction)) for prediction in found]

    def as_asked(self, batch: Batch) -> Batch:
        """Return a registered model's inputs as a batch whose `outputs` read what `answers` reads.

        Args:
            batch: The inputs. Their targets have no meaning.
        """
        return batch

    def model_inputs(self, batch: Batch) -> tuple[BatchInputs, BatchMask]:
        """Return what the model reads of a batch in `outputs`, and its mask."""
        return batch.inputs, batch.mask

    def report(
        self, split: str, loss: float, sums: Sequence[float], weight: float
    ) -> dict[str, float]:
        """Return the loss and metrics of a split, by the names under which they are logged.

        Args:
            split: `train` or `val`.
            loss: The sum of the weighted losses.
            sums: The sums over all batches, as for `metric_values`.
            weight: The sum of all `loss_weights`.
        """
        weight = max(1.0, weight)
        values = self.metric_values(sums, weight)
        named = zip(self.metrics, values, strict=True)
        return {f"{split}_loss": loss / weight} | {f"{split}_{name}": v for name, v in named}

    @classmethod
    def score(cls, metrics: Mapping[str, float]) -> float:
        """Return the value that ranks checkpoints and trials. A higher score is better.

        Args:
            metrics: The metrics with the names of `report`.

        Returns:
            The value of `selection` on the validation split. Without such a split, that on the
            training samples, or the negative training loss if only an evaluation has the metric.
        """
        value = cls.selected(metrics)
        return -metrics["train_loss"] if value is None else cls.signed(value)

    @classmethod
    def selected(cls, metrics: Mapping[str, float]) -> float | None:
        """Return the value of `selection` on the split that `score` uses; None if it has none."""
        for split in ("val", "train"):
            if (value := metrics.get(f"{split}_{cls.selection}")) is not None:
                return value
        return None

    @classmethod
    def signed(cls, value: float) -> float:
        """Convert a value of `selection` to a score (the higher, the better), or back."""
        return value if cls.higher_is_better else -value

    # --- a registered model ---

    def answers(self, model: Any, batch: Batch) -> Any:
        """Return what `predictions` turns into the answers of a registered model.

        For most objectives these are the outputs.

        Args:
            model: The module, in evaluation mode.
            batch: The inputs. Their targets have no meaning.
        """
        return self.outputs(model, batch, training=False)

    @abstractmethod
    def predictions(self, outputs: Any, sources: Sequence[str]) -> list[Prediction]:
        """Return the predictions of a registered model.

        Args:
            outputs: The result of `answers` for the inputs.
            sources: The names of the inputs.
        """

    def finite(self, outputs: Any) -> np.ndarray:
        """Return for which samples all outputs are finite numbers, bool `[batch]`."""
        return torch.isfinite(outputs.flatten(1)).all(dim=1).cpu().numpy()

    @abstractmethod
    def sample_values(self, outputs: Any, batch: Batch, classes: tuple[str, ...]) -> np.ndarray:
        """Return the value of `sample_metric` for each single sample. A promotion compares these.

        Args:
            outputs: The model's outputs. For samples whose outputs are not `finite`, `worst` is
                used instead of the value returned here.
            batch: The samples.
            classes: The names of the classes of the targets' set. They may differ from the model's.

        Returns:
            Floating-point `[samples]`.
        """

    def remarks(self, classes: tuple[str, ...]) -> list[str]:
        """Return what a person should know about this model on a set with these classes.

        Returns:
            Clauses whose subject is the model, such as "does not know the classes cat, dog".
        """
        return []


def read_names(values: Any) -> tuple[str, ...]:
    """Return the names from a card. Each must be printable and occur once.

    Raises:
        ValueError: A name is not printable or occurs twice.
    """
    if not isinstance(values, list) or not all(map(_is_printable, values)):
        raise ValueError("classes are no list of printable names")
    if len(set(values)) != len(values):
        raise ValueError("a class is named twice")
    return tuple(values)


def _is_printable(value: Any) -> bool:
    return isinstance(value, str) and not _UNPRINTABLE.search(value)
