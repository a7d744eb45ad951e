"""The evaluation of a training on its validation split, after each epoch."""

from typing import Any

import torch

from pipeline.config.tree import Config
from pipeline.training.bad_samples import BadSamples
from pipeline.training.evaluation import Metrics, RecordingMetrics, answered
from pipeline.training.loaders import VALIDATION
from pipeline.training.objectives import Objective
from pipeline.training.rank_info import RankInfo
from pipeline.training.reports.details import Details, details_of, joined_details
from pipeline.training.stopping import StopAgreedError, StopCheck
from shards.loader import ShardLoader


class Validation:
    """Evaluates an engine's model on the validation split.

    Args:
        config: The configuration.
        objective: What the model is trained for.
        engine: DeepSpeed's engine around the model.
        rank_info: This process among all ranks.
        batches: The loader of the split.
        num_samples: The number of samples of the split.
        bad: The samples that could not be read.
        stop_check: Says whether the ranks have agreed to stop.

    Attributes:
        details: The details of the last evaluation, on rank 0; None if no sample was good.
        num_samples: The number of samples of the split.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective,
        engine: Any,
        rank_info: RankInfo,
        batches: ShardLoader,
        num_samples: int,
        bad: BadSamples,
        stop_check: StopCheck,
    ) -> None:
        self.details: Details | None = None
        self.num_samples = num_samples
        self._formats, self._objective = config.data.formats, objective
        self._engine, self._device, self._batches = engine, rank_info.device, batches
        self._bad, self._stop_check = bad, stop_check

    @torch.no_grad()
    def run(self) -> dict[str, float]:
        """Return the loss and metrics over all samples, each read once.

        All ranks must call this (a collective).

        Raises:
            UserError: Too many samples cannot be read.
            StopAgreedError: The ranks have agreed to stop.
        """
        objective, device = self._objective, self._device
        self._engine.eval()
        metrics, recordings = Metrics(objective, device), self._batches.recordings
        own = None if recordings is None else RecordingMetrics(objective, device, recordings)
        details = details_of(objective)
        for batch, samples, outputs in answered(
            self._engine, objective, self._batches, self._formats, device, recordings
        ):
            metrics.update(outputs, samples, len(batch.bad))
            if samples.good.any():
                details.update(objective, outputs, samples)
            if own is not None:
                own.update(outputs, samples)
            self._bad.note(batch)
            if stop := self._stop_check.agreed():
                raise StopAgreedError(stop)
        bad = metrics.sum_over_ranks()
        self._bad.check(VALIDATION, bad, self.num_samples)
        self.details = joined_details(details) if bad < self.num_samples else None
        return metrics.compute() | (own.compute() if own is not None else {})
