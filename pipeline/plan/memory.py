"""The memory of one worker by ZeRO stage: what stays, and what the parts of a step add.

DeepSpeed 0.19.8 as `cluster.strategy` configures it. The terms were read in its sources and
measured on real steps of 1 and 2 workers (`docs/plan.md`).
"""

from dataclasses import dataclass

from cluster.strategy import MAX_BUCKET_ELEMENTS
from pipeline.plan.step_trace import StepTrace

FLOAT = 4
"""Weights, gradients, optimizer state and averages are float32."""
ALLREDUCE_ELEMENTS = 500_000_000
"""The largest bucket in which stage 0 sums gradients over the workers (DeepSpeed's default)."""
GATHERED_ELEMENTS = 50_000_000
"""How much stage 3 gathers ahead of the layer that runs (DeepSpeed's default)."""


@dataclass(frozen=True)
class Sizes:
    """What a model's parameters and a training's settings say of its memory.

    Attributes:
        trained: The number of trained parameters.
        fixed: The bytes of frozen parameters and of buffers.
        largest: The bytes of the largest parameter.
        moments: The number of tensors that the optimizer keeps for each parameter.
        averages: Whether a moving average of the weights is kept.
        is_gpu: Whether the device is a GPU, where the optimizer steps all tensors at once.
        accumulates: Whether a step has several micro-batches.
        overhead: The bytes that are taken beside tensors.
        host: What the machine's own memory or disk keeps instead of the device: `optimizer`,
            `parameters`.
        is_flat: Whether gradients lie in flat tensors at stages 1 and 2, and the model's weights
            are stepped (`cluster.flat_gradients`).
    """

    trained: int
    fixed: int
    largest: int
    moments: int
    averages: bool
    is_gpu: bool
    accumulates: bool
    overhead: int
    host: frozenset[str] = frozenset()
    is_flat: bool = False


@dataclass(frozen=True)
class StageMemory:
    """The memory of one worker, in bytes.

    Attributes:
        stage: The ZeRO stage.
        weights: The weights that the model computes with, its buffers, and its frozen parameters.
        gradients: The gradients that are kept until the optimizer's step.
        optimizer: The optimizer's state, with its own copy of the weights at stages 1 to 3; at 1
            and 2 only if they are not flat.
        average: The moving average of the weights.
        activations: What the backward pass needs of the forward pass, and what is computed on the
            way, at the worst moment.
        buffers: DeepSpeed's buffers for communication at that moment.
        step: What the optimizer's step takes for a moment, which is after the activations.
        overhead: What is taken beside tensors.
        host: What the machine keeps for this worker instead of the device (`training.offload`).
        peak: The most at any moment. It is no sum, as not all is there at once.
        moment: When that is: `passes`, `communication` or `step`.
    """

    stage: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    buffers: int
    step: int
    overhead: int
    host: int
    peak: int
    moment: str


def stage_memory(stage: int, sizes: Sizes, trace: StepTrace, workers: int) -> StageMemory:
    """Return the memory of one worker.

    Args:
        stage: The ZeRO stage.
        sizes: The sizes of model and optimizer.
        trace: One micro-batch.
        workers: The number of workers.
    """
    whole = FLOAT * sizes.trained
    part = -(-whole // workers)
    bucket = min(whole, FLOAT * MAX_BUCKET_ELEMENTS)
    # Sent while this one is computed, the next batch is on the device, too.
    activations = trace.peak + trace.inputs * sizes.is_gpu
    if stage == 0:
        weights, optimizer, gradients = whole, sizes.moments * whole, whole
        activations += trace.peak_with_gradients - trace.peak
        earlier = whole * sizes.accumulates  # gradients of the micro-batches before
        buffers = 0
        joined = min(whole, FLOAT * ALLREDUCE_ELEMENTS) if workers > 1 else 0
        after = whole + joined
        temporary = whole if sizes.is_gpu else 2 * sizes.largest
        step = gradients + temporary
    elif stage < 3:
        weights, optimizer = whole, (1 + sizes.moments) * part
        # `cluster.accumulation` sums a rank's own gradients first, as DeepSpeed does at stage 1.
        whole_sums = sizes.accumulates and (stage == 1 or workers > 1)
        gradients = whole if whole_sums else part
        earlier = gradients * sizes.accumulates
        buffers = bucket + sizes.largest
        after = 2 * bucket
        step = 4 * part
        if sizes.is_flat:
            optimizer = sizes.moments * part
            after = whole + part * (workers > 1)
            step = whole
    else:
        gathered = min(whole, FLOAT * GATHERED_ELEMENTS + sizes.largest)
        weights, optimizer = part + bucket, (1 + sizes.moments) * part + part
        gradients, earlier = 0, 0  # its place is part of the optimizer's state
        buffers = gathered
        after = 2 * bucket
        step = 3 * part
    host = 0
    if stage and "optimizer" in sizes.host:  # stepped there, too, from gradients that lie there
        host += (1 + sizes.moments) * part + part
        optimizer, gradients, earlier, step = 0, 0, 0, 0
    if stage == 3 and "parameters" in sizes.host:
        host += part
        weights -= part
    weights += sizes.fixed
    average = part if stage else whole
    average *= sizes.averages
    stays = weights + optimizer + average + sizes.overhead
    moments = {
        "passes": stays + earlier + activations + buffers,
        "communication": stays + earlier + after,
        "step": stays + step,
    }
    moment = max(moments, key=lambda name: moments[name])
    return StageMemory(
        stage=stage,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        average=average,
        activations=activations,
        buffers=buffers if moment == "passes" else after if moment == "communication" else 0,
        step=step,
        overhead=sizes.overhead,
        host=host,
        peak=moments[moment],
        moment=moment,
    )
