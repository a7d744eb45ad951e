"""`python -m benchmarks.worker`: read one job as JSON on standard input and print its answer."""

import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import machine, peers
from benchmarks.images import raw_images
from benchmarks.jobs import Answer, Job
from benchmarks.variants import resized
from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.flops import num_parameters
from pipeline.errors import UserError
from pipeline.runs.strict_json import to_json
from pipeline.training.precision import compute_as

LEARNING_RATE = 1e-4
WARM_UP_SIDE = 16
STIR_STD = 0.2

Step = Callable[[], Any]


def main() -> None:
    """Do the job. Output that libraries print goes to standard error."""
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    sys.stdout.flush()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = Job(**json.load(sys.stdin))
    if job.device == "cpu":
        machine.limit_memory()
    result = do(job)
    print(result.get("traceback", ""), file=sys.stderr)
    print(to_json(result), file=answer, flush=True)


def _end_with(parent: int) -> None:
    """Exit when the parent process is gone, so that a killed bench leaves no worker behind.

    Such a worker would disturb the next measurement.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def do(job: Job) -> Answer:
    """Do a job and return its answer, also if it raises an exception."""
    try:
        return {"status": "ok", **_TASKS[job.task](job)}
    except UserError as error:
        return {"status": "refused", "message": str(error)}
    except Exception as error:
        if machine.is_out_of_memory(error):
            return {"status": "out_of_memory"}
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return {"status": "failed", "error": line, "traceback": traceback.format_exc()}


def _machine(job: Job) -> dict[str, Any]:
    return machine.describe(job.device, job.precision, job.seconds)


def _agreement(job: Job) -> dict[str, Any]:
    """Return `errors`, the largest difference of each of our paths from transformers' logits.

    It is relative to their largest logit. It is measured on one image in float32, with random
    weights in every tensor, so that each tensor affects the logits.
    """
    config = ClassifierConfig.from_dict(job.config)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    theirs = peers.transformers_model(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            # Vectors are the zeros of biases and the ones of normalisation scales.
            std = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else STIR_STD
            parameter.add_(std * torch.randn_like(parameter))
    ours = peers.carry_over(theirs, config).to(job.device).eval()
    theirs.to(job.device).eval()
    raw = raw_images(config, 1, job.device)
    errors = {}
    with torch.inference_mode():
        expected = theirs(peers.IMPLEMENTATIONS["transformers"].images(raw, config)).logits
        for path in job.paths:
            set_attention_path(ours, path)  # type: ignore[arg-type]  # one of variants.PATHS
            difference = (ours(raw) - expected).abs().max()
            errors[path] = (difference / expected.abs().max()).item()
    return {"errors": errors}


def _classifier(job: Job) -> dict[str, Any]:
    """Measure a training step, or inference, of a whole model."""
    config, implementation = (
        ClassifierConfig.from_dict(job.config),
        peers.IMPLEMENTATIONS[job.implementation],
    )
    torch.manual_seed(0)
    model = _ready(implementation.classifier(config), job)
    raw = raw_images(config, job.batch_size, job.device)
    images = implementation.images(raw, config)
    if job.task == "train":
        labels = torch.arange(job.batch_size, device=job.device) % config.num_classes
        step = training_step(model, images, labels, job)
    else:
        step = inference_step(model, images, job)
    flops = implementation.flops(config)
    return {**_timed(step, job, flops), "parameters": num_parameters(model)}


def _cross_attend(job: Job) -> dict[str, Any]:
    """Measure forward and backward of the first cross-attend alone, with precomputed tokens."""
    config, implementation = (
        ClassifierConfig.from_dict(job.config),
        peers.IMPLEMENTATIONS[job.implementation],
    )
    torch.manual_seed(0)
    module = implementation.cross_attend(config)
    forward = _ready(module, job)
    raw = raw_images(config, job.batch_size, job.device)
    with torch.no_grad():
        tokens = module.tokens(implementation.images(raw, config))
    step = _gradient_step(module, lambda: forward(tokens), job)
    flops = implementation.cross_attend_flops(config)
    return {**_timed(step, job, flops), "parameters": num_parameters(module.cross_attend)}


def _memory(job: Job) -> dict[str, Any]:
    """Return `bytes`: the memory of a step of the first cross-attend above that of the model.

    The step includes the tokens of the images.
    """
    config, implementation = (
        ClassifierConfig.from_dict(job.config),
        peers.IMPLEMENTATIONS[job.implementation],
    )
    # The small warm-up comes first: libraries allocate some memory only once.
    for geometry in (resized(config, WARM_UP_SIDE), config):
        module = implementation.cross_attend(geometry)
        _ready(module, job)
        images = implementation.images(raw_images(geometry, job.batch_size, job.device), geometry)
        step = _gradient_step(module, lambda m=module, i=images: m(_tokens(m, i)), job)  # type: ignore[misc]  # defaults bind the loop's
        machine.reset_peak(job.device)
        before = machine.memory(job.device)
        step()
        machine.synchronize(job.device)
        used = machine.above(before, job.device)
        del module, images, step
    return {"bytes": used}


_TASKS: Mapping[str, Callable[[Job], dict[str, Any]]] = {
    "machine": _machine,
    "agreement": _agreement,
    "train": _classifier,
    "inference": _classifier,
    "cross-attend": _cross_attend,
    "memory": _memory,
}


def training_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, job: Job) -> Step:
    """Return a step of forward, cross-entropy, backward and fused AdamW, the same for all."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        with _autocast(job):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference_step(model: nn.Module, images: torch.Tensor, job: Job) -> Step:
    """Return a step that computes only the logits."""
    model.eval()

    def step() -> torch.Tensor:
        with torch.inference_mode(), _autocast(job):
            return model(images)

    return step


def _gradient_step(module: nn.Module, read: Callable[[], torch.Tensor], job: Job) -> Step:
    """Return a step of forward, and of backward from a given gradient."""
    module.train()

    def step() -> None:
        with _autocast(job):
            latents = read()
        latents.backward(torch.ones_like(latents))
        module.zero_grad(set_to_none=True)

    return step


@torch.no_grad()
def _tokens(module: peers.CrossAttend, images: torch.Tensor) -> Any:
    return module.tokens(images)


def _timed(step: Step, job: Job, forward_flops: int) -> dict[str, Any]:
    """Return `seconds` of a step, `flops` of its images, and memory. The model is already built."""
    before = machine.memory(job.device)
    estimate = machine.warm_up(step, job.device)
    machine.reset_peak(job.device)
    seconds = statistics.median(machine.time_steps(step, job.device, job.seconds, estimate))
    passes = 1 if job.task == "inference" else 3
    return {
        "seconds": seconds,
        "flops": passes * forward_flops * job.batch_size,
        "peak_bytes": machine.memory(job.device).peak,
        "bytes_above_model": machine.above(before, job.device),
    }


def _ready(model: nn.Module, job: Job) -> nn.Module:
    """Move the model to the device, set its attention path, and compile it if requested."""
    model.to(job.device)
    # It changes nothing in a peer. The path is one of variants.PATHS.
    compute_as(model, job.precision, job.path)  # type: ignore[arg-type]
    if job.checkpointed:
        model.encoder.checkpointed_share = job.checkpointed  # type: ignore[union-attr]  # ours
    return torch.compile(model) if job.compiled else model  # type: ignore[return-value]  # a module


def _autocast(job: Job) -> torch.autocast:
    return torch.autocast(job.device, torch.bfloat16, enabled=job.precision != "float32")


if __name__ == "__main__":
    main()
