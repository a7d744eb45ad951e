"""The plan of a training, for people."""

from typing import Any

from pipeline.plan.devices import GIB
from pipeline.plan.study_range import told
from pipeline.runs.console import Console

MOMENTS = {
    "passes": "forward and backward",
    "communication": "gradients are exchanged",
    "step": "the optimizer steps",
}


def report(result: dict[str, Any], console: Console) -> None:
    """Show a person what `plan` returned."""
    parameters, flops, memory = result["parameters"], result["flops"], result["memory"]
    frozen = f", {parameters['frozen']:,} frozen" if parameters["frozen"] else ""
    console.say(f"parameters: {parameters['trained']:,} trained{frozen}")
    again = flops["recomputed_step"]
    console.say(
        f"FLOPs: {_si(flops['forward_sample'])} forward a sample, as papers count; a step does "
        f"{_si(flops['forward_step'])} forward, {_si(flops['backward_step'])} backward"
        + (f", {_si(again)} again (activation checkpointing)" if again else "")
    )
    device = result["device"]
    console.table(
        f"memory of one worker of {memory['workers']}, micro-batches of {memory['micro_batch']}, "
        f"in GiB; {device['name']} has {device['memory'] / GIB:.1f}",
        ("ZeRO stage", "weights", "optimizer", "gradients", "average", "activations", "buffers",
         "besides tensors", "peak", "when"),
        [_stage(each, memory["zero_stage"]) for each in memory["stages"]],
    )  # fmt: skip
    if host := memory["stages"][memory["zero_stage"]]["host"]:
        console.say(f"the machine keeps {_gib(host)} GiB for each worker (training.offload)")
    _fit(result, console)
    _time(result, console)
    checkpoint, data = result["checkpoint"], result["data"]
    console.say(
        f"checkpoints: {_bytes(checkpoint['bytes'])} each, {checkpoint['kept']} kept: "
        f"{_bytes(checkpoint['kept_bytes'])}; while one is written, a copy of "
        f"{_bytes(checkpoint['host_copy'])} for each worker in the machine's memory"
    )
    if result["failures"]:
        _failures(result["failures"], console)
    if data["shards"] is not None:
        console.say(
            f"data: {data['samples']:,} training samples in {data['shards']} shards, "
            f"{data['samples_per_worker']:,} a worker, {data['loader_workers']} loader workers each"
        )
    if result["study"]:
        _study(result["study"], console)
    for note in result["notes"]:
        console.say(f"note: {note}")
    for text in result["not_checked"]:
        console.say(f"not checked: {text}")
    for text in result["problems"]:
        console.say(f"problem: {text}")
    if not result["problems"]:
        console.say("nothing was found that would stop this training")


def _stage(stage: dict[str, Any], chosen: int) -> tuple[str, ...]:
    names = ("weights", "optimizer", "gradients", "average", "activations", "buffers", "overhead",
             "peak")  # fmt: skip
    mark = " (set)" if stage["stage"] == chosen else ""
    return (
        f"{stage['stage']}{mark}",
        *(_gib(stage[name]) for name in names),
        MOMENTS[stage["moment"]],
    )


def _fit(result: dict[str, Any], console: Console) -> None:
    fit, memory, device = result["fit"], result["memory"], result["device"]
    if not fit["micro_batch"]:
        console.say(f"no micro-batch fits {device['name']} at ZeRO stage {memory['zero_stage']}")
        return
    console.say(
        f"{device['name']} holds micro-batches of {fit['micro_batch']} ({_gib(fit['peak'])} GiB at "
        f"ZeRO stage {memory['zero_stage']}): training.gradient_accumulation_steps="
        f"{fit['gradient_accumulation_steps']}"
    )


def _time(result: dict[str, Any], console: Console) -> None:
    run, step = result["run"], result["step"]
    console.say(
        f"a step takes about {_seconds(step['seconds'])}: {run['samples_per_second']:,.4g} "
        f"samples/s, {run['tflops_per_second']:,.3g} TFLOP/s a worker, MFU {run['mfu']:.0%}"
        + (
            f" (exchange between workers {_seconds(step['communication'])})"
            if step["communication"] > 0.02 * step["seconds"]
            else ""
        )
    )
    if "steps" not in run:
        return
    line = (
        f"{run['steps']:,} steps in {run['epochs']} epochs of {run['steps_per_epoch']:,}: "
        f"{run['samples']:,} samples, {_seconds(run['seconds_per_epoch'])} an epoch, "
        f"{_seconds(run['seconds'])} in all"
    )
    if "cost" in run:
        line += (
            f"; {run['device_hours']:,.1f} device hours cost {run['cost']:,.2f} "
            f"({run['cost_per_epoch']:,.2f} an epoch)"
        )
    console.say(line)


def _failures(failures: dict[str, Any], console: Console) -> None:
    console.say(
        f"a failure every {_seconds(failures['hours_between'] * 3600)}, and "
        f"{_seconds(failures['restart_seconds'])} until the next step: a checkpoint every "
        f"{failures['best_checkpoint_steps']:,} steps loses least, "
        f"{failures['best_lost_share']:.2%} of the time"
    )
    if "checkpoint_steps" not in failures:
        return
    line = f"one every {failures['checkpoint_steps']:,} steps loses {failures['lost_share']:.2%}"
    if failures["seconds"] is not None:
        line += (
            f": {_seconds(failures['seconds'])} in all, with {failures['expected_failures']:,.1f} "
            "failures"
        )
    console.say(line)


def _study(study: dict[str, Any], console: Console) -> None:
    """Show the smallest and the largest trial, and which values make them so."""
    named = {
        "parameters": ("trained parameters", lambda value: f"{value:,}"),
        "memory": ("memory of one worker, GiB", _gib),
        "step_seconds": ("a step", _seconds),
        "seconds": (f"a trial of {study['epochs']} epochs", _seconds),
    }
    workers = f"{study['workers']} worker{'s' * (study['workers'] > 1)}"
    rows = []
    for name, (label, shown) in named.items():
        if name in study:
            ends = [study[name][end] for end in ("smallest", "largest")]
            cells = [(shown(end["value"]), told(end["settings"], short=True)) for end in ends]
            rows.append((label, *cells[0], *cells[1]))
    console.table(
        f"study of {study['trials']} trials, each on {workers}",
        ("of a trial", "smallest", "with", "largest", "with"),
        rows,
    )
    if not study["all_corners"]:
        console.say("each searched field's smallest and largest value were found alone")
    if study["fields_without_effect"]:
        console.say(f"no effect on these: {', '.join(study['fields_without_effect'])}")
    for reason in study["refused"]:
        console.say(f"some corners of the space are no trainings: {reason}")
    if "most_device_hours" in study:
        cost = f", and cost {study['most_cost']:,.2f}" if "most_cost" in study else ""
        console.say(
            f"the study takes at most {study['most_device_hours']:,.3g} device hours{cost}, if all "
            "trials are as slow as the slowest and none is stopped early"
        )


def _gib(value: int) -> str:
    gib = value / GIB
    return "-" if not value else f"{gib:.2f}" if gib >= 1 else f"{gib:.3g}"


def _bytes(value: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def _si(value: float) -> str:
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:.4g} {unit}FLOP"
    return f"{value / 1e6:.4g} MFLOP"


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.3g} ms"
    for unit, size in (("days", 86400 * 2), ("hours", 3600 * 2), ("minutes", 120)):
        if value >= size:
            return f"{value / {'days': 86400, 'hours': 3600, 'minutes': 60}[unit]:.3g} {unit}"
    return f"{value:.3g} s"
