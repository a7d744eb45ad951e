"""`perceiver study`: answer a question about Perceivers by trials, and write its page."""

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cluster.errors import ClusterError
from cluster.interrupts import Terminated
from cluster.ray_session import ray_session
from pipeline.config.folders import local_folder
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.records import RunRecord, read_run_record, write_run_record
from pipeline.runs.run_lock import run_lock
from pipeline.runs.storage import remove_folder
from pipeline.runs.tracking import end_run
from pipeline.studies.data import described
from pipeline.studies.index import write_index
from pipeline.studies.other_seeds import (
    Compared,
    against_table,
    agreement,
    compared,
    read_summary,
    stated_points,
)
from pipeline.studies.page import write_study
from pipeline.studies.planning import base_config, bases_of, planned_trials, shard_sets
from pipeline.studies.questions.table import study_named
from pipeline.studies.request import Request
from pipeline.studies.running import Trial, parent_run, read_result, run_trials
from pipeline.studies.study import Study
from pipeline.studies.summary import by_label, found_of
from shards import ShardSet

STAGE = "study"


def conduct(request: Request, console: Console) -> dict[str, Any]:
    """Run the trainings of a study that have not ended yet, and write its page.

    Returns:
        `study`, `question`, `answer`, `page`, `run_id`, `means` (of the main metric, by arm),
        `points` (the means of all metrics), `differences`, `against` (the means beside those of
        the page that was given), `trained` (the trials that this command
        ran), and `skipped` (those that had ended).

    Raises:
        UserError: What is asked for is wrong, or a trial failed.
        ClusterError: There is no GPU, or it holds no trial.
    """
    study = study_named(request.name).at_scale(request.scale)
    scale = study.scales[request.scale]
    count = scale.seeds if request.seeds is None else request.seeds
    if count < 2:
        raise UserError(f"--seeds {count}: an interval takes at least 2")
    seeds = range(request.first_seed, request.first_seed + count)
    stated = request.against and read_summary(request.against, request, seeds)
    if scale.needs_data and request.data is None:
        raise UserError(
            f"--scale {request.scale}: give --data FOLDER, with a folder of class folders for each "
            "of train and test"
        )
    base = base_config(request, scale)
    folder = local_folder(base.folder, "a study")
    console.notice(study.question)
    with (
        run_lock(folder.parent / f".{folder.name}.lock", str(folder), console.notice),
        ray_session(base.cluster.address),
    ):
        resources, concurrent = trial_resources(request.device, base.training.loader_workers)
        if request.fresh:
            remove_folder(folder)
        bases = bases_of(study, scale, base, request.overrides)
        sets = shard_sets(study, bases, seeds, request.data, folder, console)
        record = read_run_record(folder, STAGE)
        earlier = record.result.get("run_id") if record else None
        run = parent_run(base, next(iter(sets.values())), earlier)
        write_run_record(folder, RunRecord(STAGE, {}, {"run_id": run.run_id}))
        status = "FINISHED"
        try:
            trials = planned_trials(study, bases, sets, seeds, folder, run, request.device)
            left = [trial for trial in trials if read_result(trial) is None]
            if len(left) < len(trials):
                console.notice(f"{len(trials) - len(left)} of {len(trials)} trials have ended")
            if left:
                run_trials(left, folder, console, resources, concurrent)
            results = results_of(study, trials)
            found = found_of(study, results)
            about = {**_about(request, seeds, bases, sets), "minutes": _minutes(trials)}
            page = write_study(folder / "page", study, found, results, about)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | Terminated)
            status = "KILLED" if stopped else "FAILED"
            raise
        finally:
            end_run(run, status)
    if request.docs is not None:
        copy_to(request.docs, folder / "page")
    rows = compared(study, found, stated) if stated else []
    return {
        "study": study.name,
        "question": study.question,
        "answer": study.answer(found),
        "page": str(page),
        "run_id": run.run_id,
        "means": {label: vars(mean) for label, mean in found.means.items()},
        "points": stated_points(found),
        "differences": [vars(each) for each in found.differences],
        "against": [each._asdict() for each in rows],
        "trained": len(left),
        "skipped": len(trials) - len(left),
    }


def report(result: Mapping[str, Any], console: Console) -> None:
    """Show a person what `conduct` returned."""
    study = study_named(result["study"])
    for metric in study.metrics:
        points = [each for each in result["points"] if each["metric"] == metric.name]
        names = ("arm", *([metric.along] if metric.along else []), "mean", "interval")
        cells = [
            (
                each["label"],
                *([f"{each['at']:,}"] if metric.along else []),
                metric.shown(each["mean"]),
                f"{metric.shown(each['low'])} to {metric.shown(each['high'])}",
            )
            for each in points
        ]
        console.table(metric.heading, names, cells)
    if result["against"]:
        heads = ("arm", "metric", "the page's", "expected of other seeds", "ours", "")
        rows = [Compared(**each) for each in result["against"]]
        console.table("beside the page", heads, against_table(study, rows))
        console.say(agreement(rows))
    console.say(f"{result['answer']}\npage {result['page']}; MLflow run {result['run_id']}")


def trial_resources(device: str, loader_workers: int) -> tuple[dict[str, int], int]:
    """Return what each trial takes of Ray's resources, and how many run at the same time.

    Args:
        device: `auto`, `cpu` or `cuda`.
        loader_workers: The processes that read for each training. They have CPUs of their own,
            as far as there are any.

    Raises:
        ClusterError: `cuda` is asked for, and there is no GPU.
    """
    import ray

    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    if device == "cuda" and not gpus:
        raise ClusterError("--device cuda: Ray sees no GPU here; give --device cpu")
    cpus, wanted = max(1, int(there.get("CPU", 1))), 1 + loader_workers
    if device != "cpu" and gpus:
        return {"num_cpus": max(1, min(wanted, cpus // gpus)), "num_gpus": 1}, gpus
    wanted = min(wanted, cpus)
    return {"num_cpus": wanted}, cpus // wanted


def results_of(study: Study, trials: Sequence[Trial]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of finished trials by label, those of pools and further labels too."""
    results: dict[str, list[dict[str, Any]]] = {arm.label: [] for arm in study.arms}
    for trial in trials:  # seed by seed
        results[trial.label].append(_result(trial))
    return by_label(study, results)


def _result(trial: Trial) -> dict[str, Any]:
    found = read_result(trial)
    assert found is not None  # all have ended
    return found


def copy_to(docs: Path, page_folder: Path) -> None:
    """Copy a page, its figures and its summary, and write the index anew."""
    try:
        docs.mkdir(parents=True, exist_ok=True)
        for path in page_folder.iterdir():
            shutil.copy(path, docs / path.name)
    except OSError as error:
        raise UserError(f"--docs {docs}: cannot be written ({error.strerror})") from None
    write_index(docs)


def _about(
    request: Request,
    seeds: range,
    bases: Mapping[str, Config],
    sets: Mapping[tuple[str, int], ShardSet],
) -> dict[str, Any]:
    epochs = sorted({base.training.epochs for base in bases.values()})
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    cores = f"{len(os.sched_getaffinity(0))} cores of {processor}"
    packages = ("perceiver-pipeline", "torch", "ray", "deepspeed", "scipy")
    return {
        "scale": request.scale,
        "seeds": len(seeds),
        "first_seed": seeds[0],
        "overrides": list(request.overrides),
        "command": request.command(),
        "data": f"{described(bases, sets, request.data)}, "
        f"{' to '.join(map(str, dict.fromkeys((epochs[0], epochs[-1]))))} epochs",
        "machine": " and ".join(filter(None, (device, cores))),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "date": time.strftime("%Y-%m-%d"),
    }


def _minutes(trials: Sequence[Trial]) -> float:
    return sum(float(_result(trial)["seconds"]) for trial in trials) / 60
