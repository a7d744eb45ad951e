"""`perceiver plan`: a training's memory, time, cost and problems, from its configuration."""

from dataclasses import asdict
from typing import Any

from pipeline.config.tree import Config
from pipeline.plan import checks
from pipeline.plan.planned_set import find_set
from pipeline.plan.planned_training import largest_micro_batch, plan_training
from pipeline.plan.remarks import notes_of, problems_of_device, problems_of_memory
from pipeline.plan.request import Request
from pipeline.plan.run_figures import (
    checkpoint_of,
    data_of,
    failures_of,
    flops_of,
    run_of,
)
from pipeline.plan.study_range import problems_of_study, study_range
from pipeline.runs.console import Console

STAGES = (0, 1, 2, 3)


def plan(config: Config, console: Console, request: Request) -> dict[str, Any]:
    """Plan a training. Nothing is written, but for a file that is removed at once.

    Args:
        config: The configuration.
        console: The console.
        request: What else is asked.

    Returns:
        `problems`, `notes`, `not_checked`; `parameters`, `flops`, `memory`, `fit`, `step`, `run`,
        `checkpoint`, `failures`, `data` and `study`, as `docs/plan.md` describes them.

    Raises:
        UserError: The configuration is wrong, or the device is not known.
    """
    device = request.device_of(config)
    config, planned = find_set(config, console, classes=request.classes, samples=request.samples)
    training = plan_training(config, planned, device)
    stages = {stage: training.memory(stage) for stage in STAGES}
    chosen = stages[config.zero_stage]
    fit = largest_micro_batch(training)
    time = training.step_time(request.mfu)
    checkpoint = checkpoint_of(training)
    run = run_of(training, time, request)
    study = study_range(config, planned, request)
    problems = [
        *checks.problems_of_set(config, planned),
        *problems_of_memory(training, chosen, fit),
        *problems_of_device(config, device),
        *problems_of_study(config, study),
        *checks.problems_of_cluster(config),
        *checks.problems_of_storage(config, checkpoint["bytes"]),
        *checks.problems_of_tracking(config),
    ]
    return {
        "name": config.name,
        "problems": problems,
        "notes": notes_of(training, request, run),
        "not_checked": checks.not_checked(config),
        "parameters": {"trained": training.trained, "frozen": training.frozen},
        "flops": flops_of(training),
        "device": {"name": device.name, "memory": device.memory, "tflops": device.tflops},
        "memory": {
            "micro_batch": training.trace.micro_batch,
            "workers": training.workers,
            "zero_stage": config.zero_stage,
            "saved_activations": training.trace.saved,
            "stages": [asdict(stage) for stage in stages.values()],
        },
        "fit": fit,
        "step": asdict(time) | {"seconds": time.total},
        "run": run,
        "checkpoint": checkpoint,
        "failures": failures_of(training, time, checkpoint, request),
        "data": data_of(training),
        "study": study and study.as_dict(),
    }
