"""What a training takes besides memory: FLOPs, steps, time, cost, checkpoints and samples."""

import math
from typing import Any

from pipeline.plan import checks
from pipeline.plan.lost_work import Failures
from pipeline.plan.memory import FLOAT
from pipeline.plan.planned_training import PlannedTraining
from pipeline.plan.request import Request
from pipeline.plan.timing import StepTime

RESTART_SECONDS = 60.0
COPY_RATE, COMMIT_RATE = 1.9e9, 0.21e9
"""Bytes a second of one worker, as two CPU cores that also train copy and commit a checkpoint."""


def flops_of(training: PlannedTraining) -> dict[str, int]:
    """Return the FLOPs of one step over all workers."""
    forward, backward, again = training.step_flops()
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
    of_one = training.useful_flops() / workers / time.total
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


def failures_of(
    training: PlannedTraining, time: StepTime, checkpoint: dict[str, int], request: Request
) -> dict[str, Any] | None:
    """Return what failures cost the training; None if nothing is known of them."""
    if request.failure_hours is None:
        return None
    part = checkpoint["host_copy"]
    failures = Failures(
        between=request.failure_hours * 3600 / training.workers,
        restart=request.restart_seconds or RESTART_SECONDS,
        blocked=part / COPY_RATE,
        commit=part / COMMIT_RATE,
    )
    best = max(1, round(failures.best_interval() / time.total))
    found: dict[str, Any] = {
        "hours_between": failures.between / 3600,
        "restart_seconds": failures.restart,
        "best_checkpoint_steps": best,
        "best_lost_share": failures.lost_share(best * time.total),
    }
    steps = training.steps_per_epoch
    interval = training.config.training.checkpoint_steps or steps
    if steps is not None and interval is not None:
        interval = min(interval, steps)
        work = steps * time.total * training.config.training.epochs
        seconds = failures.expected_seconds(work, interval * time.total)
        found |= {
            "checkpoint_steps": interval,
            "lost_share": failures.lost_share(interval * time.total),
            "expected_failures": seconds / failures.between if math.isfinite(seconds) else None,
            "seconds": seconds if math.isfinite(seconds) else None,
        }
    return found


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
