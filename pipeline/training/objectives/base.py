"""What every objective says of itself: the model, the loss, the metrics and the prediction."""

import dataclasses
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import nn

from perceiver_model.flops import forward_flops
from pipeline.inputs.collate import BatchInputs, BatchMask

if TYPE_CHECKING:  # these do not travel with a registered model
    from pipeline.config.tree import Config
    from shards.manifest import Manifest

ColumnKind = Literal["text", "number", "numbers", "numbers_by_name", "bytes"]
"""What a column of predictions holds."""

_KINDS: dict[Any, ColumnKind] = {
    str: "text",
    float: "number",
    list[float]: "numbers",
    dict[str, float]: "numbers_by_name",
    bytes: "bytes",
}
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""As `shards.plain` has it, which does not travel with a registered model."""


@dataclass(frozen=True)
class Batch:
    """Samples as a model takes them, on its device.

    Attributes:
        inputs, mask: of `inputs_on`.
        targets: of kind `class` int64 `[batch]`, -1 where there is none; of the others as the
            shards hold them, `[batch, …]`, filled up with zeros.
        target_lengths: int64 `[batch]`, the length of each target's own first axis.
        weights: float32 `[batch]`; 0 for padding and for samples that could not be read, else 1.
    """

    inputs: BatchInputs
    mask: BatchMask
    targets: torch.Tensor
    target_lengths: torch.Tensor
    weights: torch.Tensor


class Prediction:
    """What a model makes of one input; each objective has a dataclass of its own.

    Its first field is `source`, its last `error`, and those between are the answer, each of a
    type of `ColumnKind` or None where the input cannot be used.

    Attributes:
        headings: of columns that a table for people names otherwise.
    """

    headings: ClassVar[dict[str, str]] = {}
    source: str
    error: str | None

    @classmethod
    def unusable(cls, source: str, error: str) -> Self:
        """What is said of an input that cannot be used."""
        names = [name for name, _ in cls.columns()]
        return cls(**{**dict.fromkeys(names), "source": source, "error": error})

    @classmethod
    def columns(cls) -> list[tuple[str, ColumnKind]]:
        """Names and kinds of the answer's columns, in order: without `source` and `error`."""
        hints = typing.get_type_hints(cls)
        found = []
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # its subclasses are ones
            hint = hints[field.name]
            kind = next(each for each in (hint, *typing.get_args(hint)) if each in _KINDS)
            if field.name not in ("source", "error"):
                found.append((field.name, _KINDS[kind]))
        return found


class Objective(ABC):
    """What a model is trained for.

    An instance knows one model: its configuration and what its outputs mean. It is made from a
    training's configuration, or from a registered model's card, with which this package travels:
    at run time it imports nothing but `perceiver_model`, `pipeline.inputs` and `pipeline.media`.

    Attributes:
        name: in cards and results.
        target: the `data.target.kind` that it is trained on.
        prediction: what one prediction looks like.
        metrics: names of the metrics beside the loss; runs log `train_NAME` and `val_NAME`.
        num_sums: how many sums the metrics are made of.
        selection: the metric that selects a checkpoint, a trial and, over samples, a champion.
        higher_is_better: the direction of `selection`.
        worst: value of `selection` of a sample that the model cannot answer for. Where it is
            infinite, samples that cannot be read are left out of a promotion.
        is_right_or_wrong: whether each sample's value of `selection` is 0 or 1.
        card_fields: what a card holds beside the format of the media.
        model_config: the model's own configuration, of `perceiver_model.families`.
    """

    name: ClassVar[str]
    target: ClassVar[str]
    prediction: ClassVar[type[Prediction]]
    metrics: ClassVar[tuple[str, ...]]
    num_sums: ClassVar[int]
    selection: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    worst: ClassVar[float]
    is_right_or_wrong: ClassVar[bool] = False
    card_fields: ClassVar[frozenset[str]]
    model_config: Any

    # --- the model ---

    @classmethod
    @abstractmethod
    def of(cls, config: "Config", manifest: "Manifest") -> Self:
        """The objective of a training.

        Args:
            config: the whole configuration.
            manifest: of the shard set, with the names of its classes.

        Raises:
            ValueError: the model cannot read such data.
        """

    @classmethod
    @abstractmethod
    def from_card(cls, values: Mapping[str, Any]) -> Self:
        """The objective of a registered model; the inverse of `to_card`.

        Args:
            values: the fields `card_fields`, in JSON's types. They are not to be believed.

        Raises:
            ValueError, TypeError, KeyError: a value is missing, odd, or contradicts another.
        """

    @abstractmethod
    def to_card(self) -> dict[str, Any]:
        """The fields `card_fields`, in JSON's types."""

    @abstractmethod
    def build_model(self, positions: torch.Tensor | None = None) -> nn.Module:
        """A model with new weights.

        Args:
            positions: table of Fourier positions, floating `[tokens, channels]`; None computes
                it.
        """

    def forward_flops(self) -> int:
        """FLOPs of one forward pass of one sample."""
        return forward_flops(self.model_config)

    # --- training and evaluation ---

    def outputs(self, model: Any, batch: Batch, *, training: bool) -> Any:
        """What the model gives for a batch: with most objectives, one tensor.

        Args:
            model: the module, or DeepSpeed's engine around it.
            batch: the samples.
            training: false in evaluations, which draw nothing at random.
        """
        return model(batch.inputs, batch.mask)

    @abstractmethod
    def losses(self, outputs: Any, batch: Batch, *, training: bool) -> torch.Tensor:
        """The loss of each sample, floating `[batch]`; of samples of weight 0 anything finite."""

    def loss_weights(self, batch: Batch) -> torch.Tensor:
        """How much each sample counts in the mean of the losses, float32 `[batch]`."""
        return batch.weights

    @abstractmethod
    def sums(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """What the metrics are made of, floating `[num_sums]`.

        It is added up over the batches and workers, so it leaves samples of weight 0 out.
        """

    @abstractmethod
    def metric_values(self, sums: Sequence[float], weight: float) -> tuple[float, ...]:
        """The `metrics`, in order.

        Args:
            sums: of all batches.
            weight: the sum of all `loss_weights`, at least 1.
        """

    def report(
        self, split: str, loss: float, sums: Sequence[float], weight: float
    ) -> dict[str, float]:
        """Loss and metrics of a split by the names under which they are logged.

        Args:
            split: `train` or `val`.
            loss: sum of the weighted losses.
            sums, weight: as of `metric_values`.
        """
        weight = max(1.0, weight)
        values = self.metric_values(sums, weight)
        named = zip(self.metrics, values, strict=True)
        return {f"{split}_loss": loss / weight} | {f"{split}_{name}": v for name, v in named}

    @classmethod
    def score(cls, metrics: Mapping[str, float]) -> float:
        """What ranks checkpoints and trials; the higher, the better.

        Args:
            metrics: as `report` names them; of the validation split where there is one.
        """
        value = metrics.get(f"val_{cls.selection}")
        return cls.signed(metrics[f"train_{cls.selection}"] if value is None else value)

    @classmethod
    def signed(cls, value: float) -> float:
        """A value of `selection` as a score (the higher, the better), or the inverse."""
        return value if cls.higher_is_better else -value

    # --- a registered model ---

    @abstractmethod
    def predictions(self, outputs: Any, sources: Sequence[str]) -> list[Prediction]:
        """What a registered model answers.

        Args:
            outputs: the model's, for the sources' inputs.
            sources: names of the inputs.
        """

    def finite(self, outputs: Any) -> np.ndarray:
        """Of which samples all outputs are finite numbers, bool `[batch]`."""
        return torch.isfinite(outputs.flatten(1)).all(dim=1).cpu().numpy()

    @abstractmethod
    def sample_values(
        self, outputs: Any, targets: np.ndarray, classes: tuple[str, ...]
    ) -> np.ndarray:
        """The value of `selection` of each sample by itself; a promotion compares these.

        Args:
            outputs: the model's. Of samples for which they are not `finite`, `worst`
                counts, whatever is returned here.
            targets: as of `Batch`, of these samples.
            classes: names of the classes that the targets' set has; not always the model's.

        Returns:
            floating `[samples]`.
        """

    def remarks(self, classes: tuple[str, ...]) -> list[str]:
        """What a person should know of this model where a set has such classes.

        Returns:
            Clauses whose subject is the model, such as "does not know the classes cat, dog".
        """
        return []


def read_names(values: Any) -> tuple[str, ...]:
    """Names from a card, each one printable and there once.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(values, list) or not all(map(_is_printable, values)):
        raise ValueError("classes are no list of printable names")
    if len(set(values)) != len(values):
        raise ValueError("a class is named twice")
    return tuple(values)


def _is_printable(value: Any) -> bool:
    return isinstance(value, str) and not _UNPRINTABLE.search(value)
