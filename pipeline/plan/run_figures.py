"""What a training takes besides memory: FLOPs, steps, time, cost, checkpoints and samples."""

from typing import Any

from pipeline.plan import checks
from pipeline.plan.memory import FLOAT
from pipeline.plan.planned_training import PlannedTraining
from pipeline.plan.request import Request
from pipeline.plan.timing import StepTime


def flops_of(training: PlannedTraining) -> dict[str, int]:
    """Return the FLOPs of one step over all workers."""
    settings, trace = training.config.training, training.trace
    per_sample = settings.batch_size / trace.micro_batch
    if settings.stream:
        per_sample /= settings.stream.parts_per_step
    forward, backward, again = (round(part * per_sample) for part in trace.flops())
    return {
        "forward_sample": training.objective.forward_flops(),
        "model_step": training.model_flops(),
        "forward_step": forward,
        "backward_step": backward,
        "recomputed_step": again,
    }


def run_of(training: PlannedTraining, time: StepTime, request: Request) -> dict[str, Any]:
    """Return the steps, samples, seconds and costs of the training."""
    settings, workers = training.config.training, training.workers
    rate = settings.batch_size / time.total
    of_one = training.model_flops() / workers / time.total
    found: dict[str, Any] = {
        "samples_per_second": rate,
        "tflops_per_second": of_one / 1e12,
        "mfu": of_one / (training.device.tflops * 1e12),
        "epochs": settings.epochs,
    }
    steps = training.steps_per_epoch
    if steps is None:
        return found
    found |= {
        "steps_per_epoch": steps,
        "steps": steps * settings.epochs,
        "samples": steps * settings.batch_size * settings.epochs,
        "seconds_per_epoch": steps * time.total,
        "seconds": steps * time.total * settings.epochs,
    }
    if request.price is not None:
        hours = found["seconds"] / 3600 * workers
        found |= {"device_hours": hours, "price_per_hour": request.price}
        found |= {"cost": hours * request.price, "cost_per_epoch": hours * request.price
                  / settings.epochs}  # fmt: skip
    return found


def checkpoint_of(training: PlannedTraining) -> dict[str, int]:
    """Return the bytes of a checkpoint, how many are kept, and what they take on each host."""
    sizes = training.sizes
    size = FLOAT * sizes.trained * (1 + sizes.moments + sizes.averages) + sizes.fixed
    return {"bytes": size, "kept": checks.CHECKPOINTS - 1, "kept_bytes": 3 * size,
            "host_copy": -(-size // training.workers)}  # fmt: skip


def data_of(training: PlannedTraining) -> dict[str, Any]:
    """Return how the samples spread over the workers."""
    planned = training.planned
    found: dict[str, Any] = {
        "shards": planned.shards,
        "samples": planned.samples,
        "classes": planned.num_classes,
        "loader_workers": training.config.training.loader_workers,
    }
    if planned.samples is not None:
        found["samples_per_worker"] = planned.samples // training.workers
    return found
