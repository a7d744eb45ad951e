"""What one trial costs: its arithmetic, its size, its memory in training, and its latency."""

import statistics
import time
from collections.abc import Mapping

import torch

from pipeline.config.budget import LimitsConfig
from pipeline.config.tree import Config
from pipeline.plan.devices import GIB
from pipeline.plan.planned_set import known_set
from pipeline.plan.planned_training import plan_training
from pipeline.plan.request import Request
from pipeline.plan.step_trace import example_batch
from pipeline.training.objectives import objective_of
from shards import ShardSet

WARMUP, PASSES = 2, 9


def counted_costs(config: Config, shard_set: ShardSet) -> dict[str, float]:
    """Return the `flops` of the forward pass of a sample, and the number of `parameters`."""
    objective = objective_of(config, shard_set)
    return {"flops": objective.forward_flops(), "parameters": objective.num_parameters()}


def planned_memory(config: Config, shard_set: ShardSet) -> int:
    """Return the bytes that a worker takes at its peak in training, as `perceiver plan` counts.

    Raises:
        UserError: The model cannot be built.
    """
    training = plan_training(config, known_set(shard_set), Request().device_of(config))
    return training.memory(config.zero_stage).peak


def measured_latency(config: Config, shard_set: ShardSet) -> float:
    """Return the milliseconds of a forward pass of one sample, on one thread of this machine.

    The model has its first weights, and the sample is zeros as long as the formats allow. The time
    is the median of several passes.
    """
    objective = objective_of(config, shard_set)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            model = objective.build_model().eval()
            classes = len(shard_set.manifest.classes)
            batch = example_batch(config, objective, 1, classes)
            seconds = []
            for _ in range(WARMUP + PASSES):
                started = time.perf_counter()
                objective.outputs(model, batch, training=False)
                seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(seconds[WARMUP:])


def beyond(
    limits: LimitsConfig, counted: Mapping[str, float], config: Config, shard_set: ShardSet
) -> str | None:
    """Return which limit a trial breaks, with its own number; None if it keeps all.

    What is costly to find out is found out last.

    Args:
        limits: The limits.
        counted: The trial's `counted_costs`.
        config: The configuration of the trial.
        shard_set: The shard set.
    """
    for name in ("flops", "parameters"):
        bound = getattr(limits, name)
        if bound is not None and counted[name] > bound:
            return f"it has {counted[name]:.4g} {name}, and study.limits.{name} is {bound:.4g}"
    if limits.memory_gib is not None:
        memory = planned_memory(config, shard_set) / GIB
        if memory > limits.memory_gib:
            return (
                f"a worker needs {memory:.3g} GiB, and study.limits.memory_gib is "
                f"{limits.memory_gib:.3g}"
            )
    if limits.latency_ms is not None:
        latency = measured_latency(config, shard_set)
        if latency > limits.latency_ms:
            return (
                f"a forward pass of one sample takes {latency:.3g} ms here, and "
                f"study.limits.latency_ms is {limits.latency_ms:.3g}"
            )
    return None
