"""Evaluate a model on a split: the loss and the metrics of all samples, over all ranks."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from pipeline.inputs.batches import inputs_on
from pipeline.media import MediaFormat
from pipeline.training.objectives import Batch, Objective
from pipeline.training.objectives.carried import Carried, read_part
from pipeline.training.samples import batch_of
from pipeline.training.streams import rows_of
from shards.loader import ShardBatch
from shards.recordings import Recordings

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


def no_sums(objective: Objective) -> torch.Tensor:
    """Return zeros: float64 `[loss, the objective's sums …, weight, bad samples]`."""
    return torch.zeros(3 + objective.num_sums, dtype=torch.float64)


def metrics_of(objective: Objective, split: str, sums: Sequence[float]) -> dict[str, float]:
    """Return the loss and metrics by name.

    Args:
        objective: What the model is trained for.
        split: `train` or `val`.
        sums: Sums in the order of `no_sums`, over all ranks.
    """
    loss, *own, weight, _ = sums
    return objective.report(split, loss, own, weight)


def answered(
    model: Any,
    objective: Objective,
    batches: Iterable[ShardBatch],
    formats: Mapping[str, MediaFormat],
    device: torch.device,
    recordings: Recordings | None = None,
) -> Iterator[tuple[ShardBatch, Batch, Any]]:
    """Yield each batch, its samples as the objective takes them, and the model's outputs for them.

    The caller switches gradients off and the model to evaluation mode.

    Args:
        model: The module, or DeepSpeed's engine around it.
        objective: What the model is trained for.
        batches: Batches with the fields of `media_loader`.
        formats: The formats of the model's input, by modality.
        device: The model's device.
        recordings: The recordings, if they are read as streams; `batches` are then those of a
            loader with lanes. None reads each sample alone.
    """
    carried = Carried()
    for batch in batches:
        inputs, mask = inputs_on(batch, formats, device)
        samples = batch_of(batch, inputs, mask, objective.target, device)
        if recordings is None:
            outputs = objective.outputs(model, samples, training=False)
        else:
            firsts = rows_of(recordings.are_first(batch.numbers.numpy()), device)
            outputs, carried = read_part(objective, model, samples, firsts, carried)
        yield batch, samples, outputs


class Metrics:
    """The loss and the metrics of an evaluation, sample by sample.

    Args:
        objective: What the model is trained for.
        device: The device of the outputs.
    """

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._objective = objective
        self._sums = no_sums(objective).to(device)
        self._measures = objective.measures()
        if self._measures is not None:
            self._measures.to(device)

    def update(self, outputs: Any, samples: Batch, bad: int) -> None:
        """Add a batch.

        Args:
            outputs: The model's outputs.
            samples: The samples.
            bad: How many of them could not be read.
        """
        objective, sums = self._objective, self._sums
        weights = objective.loss_weights(samples)
        sums[0] += (objective.losses(outputs, samples, training=False) * weights).sum()
        sums[1:-2] += objective.sums(outputs, samples)
        sums[-2] += weights.sum()
        sums[-1] += bad
        if self._measures is not None and samples.good.any():
            self._measures.update(*objective.measured(outputs, samples))

    def sum_over_ranks(self) -> float:
        """Add up the sums of all ranks. Each rank must call this once, before `compute`.

        Returns:
            The number of samples that could not be read.
        """
        dist.all_reduce(self._sums)
        return float(self._sums[-1])

    def compute(self) -> dict[str, float]:
        """Return the loss and the metrics over all ranks by name, with the prefix `val_`.

        Every rank must call this.
        """
        metrics = metrics_of(self._objective, "val", self._sums.tolist())
        if self._measures is not None:
            found = _over_ranks(self._objective, self._measures)
            metrics |= {f"val_{name}": float(value) for name, value in found.items()}
        return metrics


class RecordingMetrics:
    """The same of whole recordings that are read as streams: of the answers after their last parts.

    A recording whose last part cannot be read does not count.

    Args:
        objective: What the model is trained for.
        device: The device of the outputs.
        recordings: The recordings.
    """

    def __init__(self, objective: Objective, device: torch.device, recordings: Recordings) -> None:
        self._metrics = Metrics(objective, device)
        self._recordings = recordings

    def update(self, outputs: Any, samples: Batch) -> None:
        """Add the last parts in a batch. The arguments are those of `Metrics.update`."""
        lasts = rows_of(self._recordings.are_last(samples.numbers.numpy()), samples.weights.device)
        self._metrics.update(outputs, replace(samples, weights=samples.weights * lasts), 0)

    def compute(self) -> dict[str, float]:
        """Return the loss and the metrics by name, with the prefix `val_recording_`.

        Every rank must call this.
        """
        self._metrics.sum_over_ranks()
        found = self._metrics.compute()
        return {f"val_recording_{name.removeprefix('val_')}": v for name, v in found.items()}


def _over_ranks(objective: Objective, measures: "MetricCollection") -> dict[str, torch.Tensor]:
    """Return the values of metrics over the samples of all ranks.

    torchmetrics joins tensors of equal types and numbers of dimensions only, and a rank without
    any sample has others. So the states travel as objects.

    Args:
        objective: What the model is trained for. It made the metrics.
        measures: The metrics of this rank.
    """
    states = {
        name: (metric.update_called, _on_cpu(metric.metric_state))
        for name, metric in measures.items()
    }
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, states)
    joined = objective.measures()
    assert joined is not None
    values = {}
    for name, metric in joined.items():
        metric.distributed_available_fn = lambda: False  # it holds the samples of all ranks
        for rank in everyone:
            updated, state = rank[name]
            if updated:
                metric.merge_state(state)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The ``compute`` method")  # a merge is no update
            values[name] = metric.compute()
    return values


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [each.cpu() for each in value] if isinstance(value, list) else value.cpu()
        for name, value in state.items()
    }
