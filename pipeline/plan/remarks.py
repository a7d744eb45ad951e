"""What a plan says beside its figures: what would not work, and what was assumed."""

from typing import Any

from cluster.loss_scale import FIRST_SCALE
from pipeline.config.tree import Config
from pipeline.plan.devices import GIB, Device
from pipeline.plan.memory import StageMemory
from pipeline.plan.planned_training import PlannedTraining
from pipeline.plan.request import Request
from pipeline.training.ema import lagging_average
from pipeline.training.precision import products_in


def problems_of_memory(
    training: PlannedTraining, memory: StageMemory, fit: dict[str, Any]
) -> list[str]:
    """Return what is wrong if a step does not fit the device.

    Args:
        training: The training.
        memory: The memory at its ZeRO stage.
        fit: What `largest_micro_batch` found.
    """
    config, device = training.config, training.device
    if memory.peak <= training.room:
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


def problems_of_device(config: Config, device: Device) -> list[str]:
    """Return what is wrong between the settings and the device."""
    found = []
    precision = config.training.precision
    if products_in(precision) == "bf16" and not device.has_bf16:
        found.append(
            f"training.precision is {precision!r}, which {device.name} has no fast products of; "
            "set training.precision=fp16, or take a newer GPU"
        )
    elif precision == "fp8" and not device.has_fp8:
        found.append(
            f"training.precision is {precision!r}, which {device.name} has no products of: they "
            "would be emulated, and slow; set training.precision=bf16"
        )
    if device.is_gpu and not config.cluster.use_gpu:
        found.append(
            f"--gpu {device.name}: cluster.use_gpu is false, so the training would run on CPUs; "
            "set cluster.use_gpu=true"
        )
    return found


def notes_of(training: PlannedTraining, request: Request, run: dict[str, Any]) -> list[str]:
    """Return what was assumed, and what is worth knowing.

    Args:
        training: The training.
        request: What was asked.
        run: Its steps and times.
    """
    config, planned, device = training.config, training.planned, training.device
    settings = config.training
    notes = list(planned.notes)
    if request.gpu is None and config.cluster.use_gpu:
        notes.append("planned for an H100; name another GPU with --gpu")
    if any(name in config.data.formats for name in ("text",)):
        notes.append("texts are taken at their full length; shorter ones take less")
    if settings.precision == "fp16":
        notes.append(_of_fp16(device))
    if settings.precision == "fp8":
        notes.append("fp8: memory and time are those of bf16; fp8 has not been measured")
    if settings.compile:
        notes.append("memory with torch.compile is taken to be that without it")
    if "steps" in run and (note := lagging_average(settings.ema_decay, run["steps"])):
        notes.append(note)
    if settings.offload.offloaded or settings.overlap_communication or settings.deepspeed:
        notes.append(
            "memory with offload, overlap_communication or further keys of DeepSpeed is not "
            "measured, and time does not count them"
        )
    if settings.loader_workers == 0 and device.is_gpu:
        notes.append(
            "training.loader_workers is 0: each worker reads and decodes while its GPU waits"
        )
    readers = training.workers * max(1, settings.loader_workers)
    if planned.shards is not None and planned.shards < readers:
        notes.append(
            f"{planned.shards} shards for {readers} readers: several read the same shard at once"
        )
    if request.failure_hours is not None:
        notes.append(
            "failures: without a notice, at random; machines that are taken away with a notice "
            "lose only the restart. Checkpoints are copied and committed as fast as on CPUs, and a "
            "restart takes what --restart-seconds says (60)"
        )
    if request.mfu is None and device.is_gpu and device.name not in ("h100", "h200"):
        notes.append("speed: the shares of the peak are those of an H100, not measured here")
    return notes


def _of_fp16(device: Device) -> str:
    """Return what float16 does to a training on the device."""
    scaled = (
        f"fp16 multiplies the loss by a scale, at first {FIRST_SCALE:,.0f}; a step whose gradient "
        "overflows is left out and halves it, so some of the steps train nothing"
    )
    if not device.is_gpu:
        return (
            f"{scaled}; a CPU computes in float16 too, but it saves no time there: it is for GPUs"
        )
    if device.has_bf16:
        return f"{scaled}; {device.name} has bf16, which is as fast and needs no scale"
    return scaled
