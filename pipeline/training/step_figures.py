"""What a training logs at a step beside its loss: speed, memory, and the gradient's norm."""

from typing import Any

import psutil
import torch
import torch.distributed as dist

from cluster.device_peaks import peak_of
from cluster.gradient_norm import GradientNorm
from pipeline.config.tree import Config
from pipeline.training.objectives import Objective
from pipeline.training.precision import products_in
from pipeline.training.rank_info import RankInfo
from pipeline.training.step_clock import StepClock

BACKWARD_AND_FORWARD = 3
"""A backward pass takes twice the FLOPs of a forward pass."""
MEASURED = frozenset({
    "samples_per_second",
    "tokens_per_second",
    "tflops_per_second",
    "mfu",
    "data_wait_share",
    "host_memory_gb",
    "device_memory_peak_gb",
})  # fmt: skip
"""The metrics that depend on the machine. A training that repeats exactly has other values of
these, and the same values of all others."""


class StepFigures:
    """Computes the figures of the steps since the last reading.

    Nothing here waits for the device, except `read`.

    Args:
        config: The configuration.
        objective: What the model is trained for.
        engine: DeepSpeed's engine.
        rank_info: This process among all ranks.
        clock: The clock of the steps.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective,
        engine: Any,
        rank_info: RankInfo,
        clock: StepClock,
    ) -> None:
        training = config.training
        self._rank_info, self._clock = rank_info, clock
        self._norm = GradientNorm(engine)
        self._batch_size, views = training.batch_size, training.augment.views
        self._tokens = views * objective.num_tokens()
        # MFU does not count the FLOPs that are computed again (Chowdhery et al., arXiv 2204.02311,
        # appendix B).
        self._model_flops = BACKWARD_AND_FORWARD * views * objective.forward_flops()
        again = objective.recomputed_flops(training.activation_checkpointing)
        self._flops = self._model_flops + views * again
        self._peak = config.cluster.device_peak_tflops or peak_of(
            rank_info.device, products_in(training.precision)
        )
        self._process = psutil.Process()

    def before_step(self) -> None:
        """Prepare for a reading after the step that the engine is about to take."""
        self._norm.before_step()

    def read(self) -> dict[str, float]:
        """Return the figures of the steps since the last reading. All ranks must call this.

        The share of waiting and the memory are those of the rank with the most. FLOPs are those of
        one rank. The dictionary lacks what is not known.
        """
        interval = self._clock.read()
        samples = interval.steps * self._batch_size / interval.seconds if interval.seconds else 0.0
        waited, device_memory, host_memory = self._most(
            interval.data_share, self._device_memory(), self._process.memory_info().rss
        )
        of_rank = samples / self._rank_info.world_size / 1e12
        figures = {
            "samples_per_second": samples,
            "tokens_per_second": samples * self._tokens,
            "tflops_per_second": of_rank * self._flops,
            "data_wait_share": waited,
            "host_memory_gb": host_memory / 1e9,
        }
        if self._rank_info.device.type == "cuda":
            figures["device_memory_peak_gb"] = device_memory / 1e9
        if self._peak is not None:
            figures["mfu"] = of_rank * self._model_flops / self._peak
        norm = self._norm.read()
        return figures if norm is None else {"gradient_norm": norm, **figures}

    def _device_memory(self) -> int:
        device = self._rank_info.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0

    def _most(self, *values: float) -> list[float]:
        """Return the largest of each value over all ranks."""
        most = torch.tensor(values, dtype=torch.float64, device=self._rank_info.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        found: list[float] = most.tolist()
        return found
