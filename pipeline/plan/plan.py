"""`perceiver plan`: a training's memory, time, cost and problems, from its configuration."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from cluster.optimizers import OPTIMIZERS
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.plan import checks
from pipeline.plan.devices import GIB, Device, device_named
from pipeline.plan.memory import FLOAT, Sizes, StageMemory, stage_memory
from pipeline.plan.planned_set import PlannedSet, find_set, planned_objective
from pipeline.plan.step_trace import StepTrace, build_on_meta, trace_step
from pipeline.plan.timing import StepTime, step_time
from pipeline.runs.console import Console
from pipeline.training.ema import lagging_average
from pipeline.training.initial_weights.matching import plan_init
from pipeline.training.objectives import Objective

STAGES = (0, 1, 2, 3)
SPARE_SHARE = 0.05
"""The share of a device's memory that is left free, as an allocator loses some between tensors."""


@dataclass(frozen=True)
class Request:
    """What is asked besides the configuration.

    Attributes:
        gpu: The name of the device; None takes `cpu`, or `h100` with `cluster.use_gpu`.
        gpu_memory: The memory of the device, in GiB.
        gpu_tflops: The peak of the device at the training's precision.
        price: The price of one device for an hour.
        classes: The number of classes, if there is no set.
        samples: The number of training samples, if there is no set.
        mfu: The share of the peak that the model's FLOPs reach, instead of the estimate.
    """

    gpu: str | None = None
    gpu_memory: float | None = None
    gpu_tflops: float | None = None
    price: float | None = None
    classes: int | None = None
    samples: int | None = None
    mfu: float | None = None


def plan(config: Config, console: Console, request: Request) -> dict[str, Any]:
    """Plan a training. Nothing is written, but for a file that is removed at once.

    Args:
        config: The configuration.
        console: The console.
        request: What else is asked.

    Returns:
        `problems`, `notes`, `not_checked`; `parameters`, `flops`, `memory`, `fit`, `step`, `run`,
        `checkpoint` and `data`, as `docs/plan.md` describes them.

    Raises:
        UserError: The configuration is wrong, or the device is not known.
    """
    training = config.training
    name = request.gpu or ("h100" if config.cluster.use_gpu else "cpu")
    device = device_named(
        name,
        training.precision,
        cores=config.cluster.cpus_per_worker,
        memory_gib=request.gpu_memory,
        tflops=request.gpu_tflops,
    )
    config, planned = find_set(config, console, classes=request.classes, samples=request.samples)
    objective = planned_objective(config, planned)
    model = build_on_meta(objective, config)
    trained, frozen = _freeze(model, config)
    workers = checks.workers_of(config)
    micro_batch = config.micro_batch_size(workers)
    trace = trace_step(model, objective, config, micro_batch, planned.num_classes)
    sizes = _sizes(model, config, device, trained)
    stages = {stage: stage_memory(stage, sizes, trace, workers) for stage in STAGES}
    chosen = stages[training.zero_stage]
    fit = _fit(model, objective, config, planned, sizes, device, trace)
    time = step_time(
        trace.operations,
        device,
        micro_batches=_micro_batches(config),
        trained=trained,
        moments=sizes.moments,
        stage=training.zero_stage,
        workers=workers,
        compiled=training.compile is not None,
    )
    flops = _flops(trace, objective, config)
    if request.mfu is not None:
        seconds = flops["model_step"] / workers / (request.mfu * device.tflops * 1e12)
        time = StepTime(seconds, 0.0, 0.0)
    checkpoint = _checkpoint(sizes, config, workers)
    problems = [
        *checks.problems_of_set(config, planned),
        *_problems_of_memory(config, chosen, fit, device),
        *_problems_of_device(config, device),
        *checks.problems_of_cluster(config),
        *checks.problems_of_storage(config, checkpoint["bytes"]),
        *checks.problems_of_tracking(config),
    ]
    run = _run(config, planned, time, flops, device, request)
    return {
        "name": config.name,
        "problems": problems,
        "notes": _notes(config, planned, request, device, run),
        "not_checked": checks.not_checked(config),
        "parameters": {"trained": trained, "frozen": frozen},
        "flops": flops,
        "device": {"name": device.name, "memory": device.memory, "tflops": device.tflops},
        "memory": {
            "micro_batch": micro_batch,
            "workers": workers,
            "zero_stage": training.zero_stage,
            "saved_activations": trace.saved,
            "stages": [asdict(stage) for stage in stages.values()],
        },
        "fit": fit,
        "step": asdict(time) | {"seconds": time.total},
        "run": run,
        "checkpoint": checkpoint,
        "data": _data(config, planned, workers),
    }


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
    )


def _micro_batches(config: Config) -> int:
    return config.training.gradient_accumulation_steps


def _flops(trace: StepTrace, objective: Objective, config: Config) -> dict[str, int]:
    """Return the FLOPs of one step over all workers."""
    training = config.training
    per_sample = training.batch_size / trace.micro_batch
    if training.stream:
        per_sample /= training.stream.parts_per_step
    forward, backward, again = (round(part * per_sample) for part in trace.flops())
    model = 3 * objective.forward_flops() * training.batch_size * training.augment.views
    return {
        "forward_sample": objective.forward_flops(),
        "model_step": model,
        "forward_step": forward,
        "backward_step": backward,
        "recomputed_step": again,
    }


def _fit(
    model: nn.Module,
    objective: Objective,
    config: Config,
    planned: PlannedSet,
    sizes: Sizes,
    device: Device,
    trace: StepTrace,
) -> dict[str, Any]:
    """Return the largest micro-batch that fits the device, and the accumulation that it means."""
    training, workers = config.training, checks.workers_of(config)
    room = int(device.memory * (1 - SPARE_SHARE))
    other = 2 * trace.micro_batch if trace.micro_batch < 4 else trace.micro_batch // 2
    second = trace_step(model, objective, config, other, planned.num_classes)
    a, b = sorted((trace, second), key=lambda each: each.micro_batch)
    parts = training.stream.parts_per_step if training.stream else 1
    share = training.batch_size // (workers * parts)
    divisors = [size for size in range(1, share + 1) if share % size == 0]
    fitting = {
        size: stage_memory(training.zero_stage, sizes, _at(a, b, size), workers).peak
        for size in divisors
    }
    sizes_that_fit = [size for size, peak in fitting.items() if peak <= room]
    largest = max(sizes_that_fit, default=0)
    return {
        "micro_batch": largest,
        "gradient_accumulation_steps": share // largest if largest else None,
        "peak": fitting.get(largest),
        "room": room,
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


def _checkpoint(sizes: Sizes, config: Config, workers: int) -> dict[str, int]:
    """Return the bytes of a checkpoint, how many are kept, and what they take on each host."""
    size = FLOAT * sizes.trained * (1 + sizes.moments + sizes.averages) + sizes.fixed
    return {"bytes": size, "kept": checks.CHECKPOINTS - 1, "kept_bytes": 3 * size,
            "host_copy": -(-size // workers)}  # fmt: skip


def _problems_of_memory(
    config: Config, memory: StageMemory, fit: dict[str, Any], device: Device
) -> list[str]:
    if memory.peak <= fit["room"]:
        return []
    text = (
        f"one worker needs {memory.peak / GIB:.1f} GiB, and {device.name} has "
        f"{device.memory / GIB:.1f}"
    )
    if fit["micro_batch"]:
        mend = f"training.gradient_accumulation_steps={fit['gradient_accumulation_steps']}"
        return [f"{text}; {mend} fits (micro-batches of {fit['micro_batch']})"]
    mend = "raise training.zero_stage or cluster.num_workers, or take a device with more memory"
    if config.training.activation_checkpointing < 1:
        mend = f"set training.activation_checkpointing=1, {mend}"
    return [f"{text}, and even a micro-batch of 1 does not fit; {mend}"]


def _problems_of_device(config: Config, device: Device) -> list[str]:
    found = []
    if config.training.precision == "bf16" and not device.has_bf16:
        found.append(
            f"training.precision is 'bf16', which {device.name} has no fast products of; set "
            "training.precision=fp16, or take a newer GPU"
        )
    if device.is_gpu and not config.cluster.use_gpu:
        found.append(
            f"--gpu {device.name}: cluster.use_gpu is false, so the training would run on CPUs; "
            "set cluster.use_gpu=true"
        )
    return found


def _run(
    config: Config,
    planned: PlannedSet,
    time: StepTime,
    flops: dict[str, int],
    device: Device,
    request: Request,
) -> dict[str, Any]:
    """Return the steps, samples, seconds and costs of the training."""
    training, workers = config.training, checks.workers_of(config)
    rate = training.batch_size / time.total
    of_one = flops["model_step"] / workers / time.total
    found: dict[str, Any] = {
        "samples_per_second": rate,
        "tflops_per_second": of_one / 1e12,
        "mfu": of_one / (device.tflops * 1e12),
        "epochs": training.epochs,
    }
    if planned.samples is None:
        return found
    steps = planned.samples // training.batch_size
    found |= {
        "steps_per_epoch": steps,
        "steps": steps * training.epochs,
        "samples": steps * training.batch_size * training.epochs,
        "seconds_per_epoch": steps * time.total,
        "seconds": steps * time.total * training.epochs,
    }
    if request.price is not None:
        hours = found["seconds"] / 3600 * workers
        found |= {"device_hours": hours, "price_per_hour": request.price}
        found |= {"cost": hours * request.price, "cost_per_epoch": hours * request.price
                  / training.epochs}  # fmt: skip
    return found


def _data(config: Config, planned: PlannedSet, workers: int) -> dict[str, Any]:
    """Return how the samples spread over the workers."""
    found: dict[str, Any] = {
        "shards": planned.shards,
        "samples": planned.samples,
        "classes": planned.num_classes,
        "loader_workers": config.training.loader_workers,
    }
    if planned.samples is not None:
        found["samples_per_worker"] = planned.samples // workers
    return found


def _notes(
    config: Config,
    planned: PlannedSet,
    request: Request,
    device: Device,
    run: dict[str, Any],
) -> list[str]:
    notes = list(planned.notes)
    training = config.training
    if request.gpu is None and config.cluster.use_gpu:
        notes.append("planned for an H100; name another GPU with --gpu")
    if any(name in config.data.formats for name in ("text",)):
        notes.append("texts are taken at their full length; shorter ones take less")
    if training.compile:
        notes.append("memory with torch.compile is taken to be that without it")
    if "steps" in run and (note := lagging_average(training.ema_decay, run["steps"])):
        notes.append(note)
    if training.offload.offloaded or training.overlap_communication or training.deepspeed:
        notes.append(
            "memory with offload, overlap_communication or further keys of DeepSpeed is not "
            "measured, and time does not count them"
        )
    if training.loader_workers == 0 and device.is_gpu:
        notes.append(
            "training.loader_workers is 0: each worker reads and decodes while its GPU waits"
        )
    readers = checks.workers_of(config) * max(1, training.loader_workers)
    if planned.shards is not None and planned.shards < readers:
        notes.append(
            f"{planned.shards} shards for {readers} readers: several read the same shard at once"
        )
    if request.mfu is None and device.is_gpu and device.name not in ("h100", "h200"):
        notes.append("speed: the shares of the peak are those of an H100, not measured here")
    return notes


def check_request(request: Request) -> None:
    """Refuse numbers that cannot be.

    Raises:
        UserError: A number is not above 0.
    """
    for name, value in asdict(request).items():
        if isinstance(value, int | float) and not (value > 0 and math.isfinite(value)):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be above 0")
    if request.mfu is not None and request.mfu > 1:
        raise UserError(f"--mfu {request.mfu}: is a share of the peak, so at most 1")
