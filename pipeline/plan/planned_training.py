"""One training as it is planned: its model, one traced micro-batch, and what follows from them."""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from cluster.flat_gradients import are_flat
from cluster.optimizers import OPTIMIZERS
from pipeline.config.tree import Config
from pipeline.plan import checks
from pipeline.plan.devices import Device
from pipeline.plan.memory import FLOAT, Sizes, StageMemory, stage_memory
from pipeline.plan.planned_set import PlannedSet, planned_objective
from pipeline.plan.step_trace import StepTrace, build_on_meta, trace_step
from pipeline.plan.timing import StepTime, step_time
from pipeline.training.initial_weights.matching import plan_init
from pipeline.training.objectives import Objective

SPARE_SHARE = 0.05
"""The share of a device's memory that is left free, as an allocator loses some between tensors."""


@dataclass(frozen=True)
class PlannedTraining:
    """A training, and one micro-batch of it.

    Attributes:
        config: The configuration.
        planned: The shard set, or what is known of it.
        device: The device of each worker.
        objective: What the model is trained for.
        model: The model, on the meta device, with its frozen parameters frozen.
        trained: The number of trained parameters.
        frozen: The number of frozen parameters.
        workers: The number of workers.
        sizes: What model and settings say of the memory.
        trace: One micro-batch.
    """

    config: Config
    planned: PlannedSet
    device: Device
    objective: Objective
    model: nn.Module
    trained: int
    frozen: int
    workers: int
    sizes: Sizes
    trace: StepTrace

    def memory(self, stage: int) -> StageMemory:
        """Return the memory of one worker at a ZeRO stage."""
        return stage_memory(stage, self.sizes, self.trace, self.workers)

    def step_time(self, mfu: float | None = None) -> StepTime:
        """Return the time of an optimizer step.

        Args:
            mfu: The share of the device's peak that `useful_flops` reach, instead of the estimate.
        """
        training = self.config.training
        if mfu is not None:
            seconds = self.useful_flops() / self.workers / (mfu * self.device.tflops * 1e12)
            return StepTime(seconds, 0.0, 0.0)
        return step_time(
            self.trace.operations,
            self.device,
            micro_batches=training.gradient_accumulation_steps,
            trained=self.trained,
            moments=self.sizes.moments,
            stage=self.config.zero_stage,
            workers=self.workers,
            compiled=training.compile is not None,
        )

    def step_flops(self) -> tuple[int, int, int]:
        """Return the FLOPs of one step over all workers, as `StepTrace.flops`."""
        training = self.config.training
        per_sample = training.batch_size / self.trace.micro_batch
        if training.stream:
            per_sample /= training.stream.parts_per_step
        forward, backward, again = (round(part * per_sample) for part in self.trace.flops())
        return forward, backward, again

    def useful_flops(self) -> int:
        """Return the FLOPs of one step over all workers, without those that are done again.

        The separable path leaves out FLOPs that papers count, so a share of the peak must not count
        them.
        """
        forward, backward, _ = self.step_flops()
        return forward + backward

    def model_flops(self) -> int:
        """Return the FLOPs of one step over all workers as papers count them."""
        training = self.config.training
        views = training.batch_size * training.augment.views
        return 3 * self.objective.forward_flops() * views

    @property
    def steps_per_epoch(self) -> int | None:
        """The number of steps of an epoch; None if the number of samples is not known."""
        samples = self.planned.samples
        return None if samples is None else samples // self.config.training.batch_size

    @property
    def room(self) -> int:
        """The bytes of the device that a training may take."""
        return int(self.device.memory * (1 - SPARE_SHARE))


def plan_training(config: Config, planned: PlannedSet, device: Device) -> PlannedTraining:
    """Build a training's model without memory, and trace one micro-batch of it.

    Args:
        config: The configuration.
        planned: The shard set, or what is known of it.
        device: The device of each worker.

    Raises:
        UserError: The model cannot be built, or `model.init.freeze` names no parameter of it.
    """
    objective = planned_objective(config, planned)
    model = build_on_meta(objective, config)
    trained, frozen = _freeze(model, config)
    workers = checks.workers_of(config)
    micro_batch = config.micro_batch_size(workers)
    return PlannedTraining(
        config=config,
        planned=planned,
        device=device,
        objective=objective,
        model=model,
        trained=trained,
        frozen=frozen,
        workers=workers,
        sizes=_sizes(model, config, device, trained),
        trace=trace_step(model, objective, config, micro_batch, planned.num_classes),
    )


def _freeze(model: nn.Module, config: Config) -> tuple[int, int]:
    """Freeze what `model.init.freeze` names. Return the numbers of trained and frozen parameters.

    Raises:
        UserError: A pattern matches no parameter, or all are frozen.
    """
    names = [name for name, _ in model.named_parameters()]
    untrained = [name for name, p in model.named_parameters() if not p.requires_grad]
    init = config.model.init
    frozen = plan_init(init, None, {}, names, untrained).frozen if init else frozenset()
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return counts[True], counts[False]


def _sizes(model: nn.Module, config: Config, device: Device, trained: int) -> Sizes:
    training = config.training
    frozen = [p for p in model.parameters() if not p.requires_grad]
    fixed = [*frozen, *model.buffers()]
    largest = [p.numel() * FLOAT for p in model.parameters() if p.requires_grad]
    moments = OPTIMIZERS[training.optimizer].moments
    return Sizes(
        trained=trained,
        fixed=sum(tensor.numel() * tensor.element_size() for tensor in fixed),
        largest=max(largest, default=0),
        # Muon keeps one moment of the hidden matrices, and two of the others.
        moments=min(2, len(moments)),
        averages=training.ema_decay is not None,
        is_gpu=device.is_gpu,
        accumulates=training.gradient_accumulation_steps > 1,
        overhead=device.overhead,
        host=frozenset(training.offload.offloaded),
        is_flat=are_flat(
            trained,
            device="cuda" if device.is_gpu else "cpu",
            offloads=bool(training.offload.offloaded),
            overlaps=training.overlap_communication,
            keys=training.deepspeed,
        ),
    )


def largest_micro_batch(training: PlannedTraining) -> dict[str, Any]:
    """Return the largest micro-batch that fits the device, and the accumulation that it means.

    Returns:
        `micro_batch` and `gradient_accumulation_steps` (0 and None if none fits), `peak` and `room`
        in bytes.
    """
    config, trace, workers = training.config, training.trace, training.workers
    other = 2 * trace.micro_batch if trace.micro_batch < 4 else trace.micro_batch // 2
    second = trace_step(
        training.model, training.objective, config, other, training.planned.num_classes
    )
    a, b = sorted((trace, second), key=lambda each: each.micro_batch)
    parts = config.training.stream.parts_per_step if config.training.stream else 1
    share = config.training.batch_size // (workers * parts)
    divisors = [size for size in range(1, share + 1) if share % size == 0]
    stage = config.zero_stage
    fitting = {
        size: stage_memory(stage, training.sizes, _at(a, b, size), workers).peak
        for size in divisors
    }
    largest = max((size for size, peak in fitting.items() if peak <= training.room), default=0)
    return {
        "micro_batch": largest,
        "gradient_accumulation_steps": share // largest if largest else None,
        "peak": fitting.get(largest),
        "room": training.room,
    }


def _at(a: StepTrace, b: StepTrace, micro_batch: int) -> StepTrace:
    """Return the trace of another micro-batch. Memory grows with it along a straight line."""

    def line(low: int, high: int) -> int:
        slope = (high - low) / (b.micro_batch - a.micro_batch)
        return max(0, math.ceil(low + slope * (micro_batch - a.micro_batch)))

    return replace(
        a,
        micro_batch=micro_batch,
        saved=line(a.saved, b.saved),
        peak=line(a.peak, b.peak),
        peak_with_gradients=line(a.peak_with_gradients, b.peak_with_gradients),
        inputs=line(a.inputs, b.inputs),
    )
