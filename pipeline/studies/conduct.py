"""`perceiver study`: answer a question about Perceivers by trainings, and write its page."""

import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cluster.errors import ClusterError
from cluster.interrupts import Terminated
from cluster.ray_session import ray_session
from pipeline.config.folders import local_folder
from pipeline.config.load import load_config, with_values
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.records import RunRecord, read_run_record, write_run_record
from pipeline.runs.run_lock import run_lock
from pipeline.runs.storage import remove_folder
from pipeline.runs.tracking import end_run, source_tags
from pipeline.studies import peers
from pipeline.studies.data import image_folders, image_format, make_set
from pipeline.studies.page import write_index, write_study
from pipeline.studies.positions import add_tables
from pipeline.studies.questions.table import study_named
from pipeline.studies.running import Trial, parent_run, read_result, run_trials
from pipeline.studies.statistics import differences_of, mean_of
from pipeline.studies.study import Arm, Found, Scale, Study
from pipeline.training.loaders import steps_per_epoch
from pipeline.training.open_shards import open_shards
from shards import ShardSet

STAGE = "study"
PLACES = ("name", "output", "shards", "tracking", "registry", "study", "cluster", "seed")
"""The sections of a configuration that do not change what is learned. The seed is told apart."""


@dataclass(frozen=True)
class Request:
    """What the person asks for.

    Attributes:
        name: The name of the study.
        scale: `small`, `full`, or `tiny` for tests.
        device: `auto`, `cpu` or `cuda`.
        seeds: The number of seeds; None takes the scale's.
        output: The folder for everything.
        data: The folder with `train` and `test`; None takes the demo's digits.
        docs: The folder that gets copies of the pages and the index; None copies nothing.
        tracking_uri: MLflow's URI; None takes the default.
        fresh: Whether to forget the results of an earlier run.
        overrides: Changes to the configuration of all arms.
    """

    name: str
    scale: str = "small"
    device: str = "auto"
    seeds: int | None = None
    output: str = "runs"
    data: Path | None = None
    docs: Path | None = None
    tracking_uri: str | None = None
    fresh: bool = False
    overrides: tuple[str, ...] = ()

    def command(self) -> str:
        """Return the command line that asks for the same results."""
        words = ["perceiver", "study", self.name, *self.overrides, "--scale", self.scale]
        if self.device != "auto":
            words += ["--device", self.device]
        if self.seeds is not None:
            words += ["--seeds", str(self.seeds)]
        if self.data is not None:
            words += ["--data", str(self.data)]
        return shlex.join(words)


def conduct(request: Request, console: Console) -> dict[str, Any]:
    """Run the trainings of a study that have not ended yet, and write its page.

    Returns:
        `study`, `question`, `answer`, `page`, `run_id`, `means` and `differences` (as on the page),
        `trained` (the trainings that this command ran), and `skipped` (those that had ended).

    Raises:
        UserError: What is asked for is wrong, or a training failed.
        ClusterError: There is no GPU, or it holds no trial.
    """
    study = study_named(request.name)
    scale = study.scales[request.scale]
    seeds = scale.seeds if request.seeds is None else request.seeds
    if seeds < 2:
        raise UserError(f"--seeds {seeds}: an interval takes at least 2")
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
        sets = shard_sets(study, base, request, folder, console)
        record = read_run_record(folder, STAGE)
        earlier = record.result.get("run_id") if record else None
        run = parent_run(base, next(iter(sets.values())), earlier)
        write_run_record(folder, RunRecord(STAGE, {}, {"run_id": run.run_id}))
        status = "FINISHED"
        try:
            trials = planned_trials(study, base, sets, seeds, folder, run, request.device)
            left = [trial for trial in trials if read_result(trial) is None]
            if len(left) < len(trials):
                console.notice(f"{len(trials) - len(left)} of {len(trials)} trainings have ended")
            if left:
                run_trials(left, folder, console, resources, concurrent)
            found, results = summary_of(study, trials)
            about = {**_about(request, seeds, base, sets), "minutes": _minutes(results)}
            page = write_study(folder / "page", study, found, results, about)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | Terminated)
            status = "KILLED" if stopped else "FAILED"
            raise
        finally:
            end_run(run, status)
    if request.docs is not None:
        copy_to(request.docs, folder / "page")
    return {
        "study": study.name,
        "question": study.question,
        "answer": study.answer(found),
        "page": str(page),
        "run_id": run.run_id,
        "means": {label: vars(mean) for label, mean in found.means.items()},
        "differences": [vars(each) for each in found.differences],
        "trained": len(left),
        "skipped": len(trials) - len(left),
    }


def report(result: Mapping[str, Any], console: Console) -> None:
    """Show a person what `conduct` returned."""
    console.table(
        "accuracy on test, %",
        ("arm", "mean", "interval"),
        [
            (label, f"{100 * m['mean']:.2f}", f"{100 * m['low']:.2f} to {100 * m['high']:.2f}")
            for label, m in result["means"].items()
        ],
    )
    console.say(f"{result['answer']}\npage {result['page']}; MLflow run {result['run_id']}")


def base_config(request: Request, scale: Scale) -> Config:
    """Return the configuration that all arms start from."""
    config = load_config(scale.config, [f"output={request.output}"])
    name = f"study-{request.name}-{request.scale}"
    config = with_values(
        config,
        {
            **scale.values,
            "name": name,
            "study": None,
            "cluster.num_workers": 0,
            "cluster.address": None,
            "tracking.experiment": name,
            "tracking.system_metrics": False,
            **({"tracking.uri": request.tracking_uri} if request.tracking_uri else {}),
        },
    )
    config = load_overridden(config, request.overrides)
    # The trainings have folders of their own, and share the store.
    config = with_values(config, {"tracking.uri": config.tracking_uri})
    if config.trained_for is None or config.trained_for.kind != "classify":
        raise UserError("a study compares accuracies, and the overrides leave none to compare")
    return config


def load_overridden(config: Config, overrides: Sequence[str]) -> Config:
    """Return a configuration with overrides, as a command line gives them."""
    from pipeline.config.overrides import read_override

    refused = ("name", "output", "shards", "seed", "study", "data.train", "data.test")
    values = dict(map(read_override, overrides))
    for path in values:
        is_place = path.startswith(("cluster.", "tracking.")) and path != "cluster.address"
        if path in refused or is_place or path.startswith("training.augment"):
            raise UserError(f"{path}: the study sets it itself; see 'perceiver study --help'")
    return with_values(config, values) if values else config


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


def shard_sets(
    study: Study, base: Config, request: Request, folder: Path, console: Console
) -> dict[str, ShardSet]:
    """Make the shard sets of a study's arms, with the position tables of all arms."""
    data = folder / "data"
    images, _ = image_folders(data, request.data)
    sets = {}
    for arm in study.arms:
        if arm.data not in sets:
            sets[arm.data] = make_set(base, arm.data, images, data, console)
        add_tables(sets[arm.data], arm.data, arm.config(base))
    return sets


def planned_trials(
    study: Study,
    base: Config,
    sets: Mapping[str, ShardSet],
    seeds: int,
    folder: Path,
    run: Any,
    device: str,
) -> list[Trial]:
    """Return the trainings of a study: every arm from every seed, seed by seed.

    Raises:
        UserError: An arm cannot be trained on its set.
    """
    tags, trials = source_tags(), []
    for seed in range(seeds):
        for number, arm in enumerate(study.arms):
            values = {"seed": seed, "shards": str(sets[arm.data].location)}
            config = arm.config(base, values)
            if not seed:  # what no trial could train is refused before any begins
                steps_per_epoch(config, open_shards(config))
            digest = definition_digest(arm, config, sets[arm.data].digest, device)
            name = f"{number:02d}-seed-{seed}-{digest[:10]}"
            config = with_values(config, {"name": name, "output": str(folder / "trainings")})
            trials.append(
                Trial(
                    arm.label,
                    seed,
                    config.model_dump_json(),
                    arm.peer,
                    digest,
                    str(folder / "results" / f"{name}.json"),
                    run,
                    {**tags, "perceiver.arm": arm.label, "perceiver.seed": str(seed)},
                )
            )
    return trials


def definition_digest(arm: Arm, config: Config, data_digest: str, device: str) -> str:
    """Return a digest of all that determines the result of a training.

    An arm whose digest has changed is trained anew. Its older results stay, and are not used.
    """
    tree = {key: value for key, value in config.tree().items() if key not in PLACES}
    tree["data"] = {k: v for k, v in tree["data"].items() if k not in ("train", "test")}
    sources = b"".join(
        path.read_bytes() for path in sorted(Path(str(peers.__file__)).parent.glob("*.py"))
    )
    text = {
        "config": tree,
        "seed": config.seed,
        "data": data_digest,
        "set": arm.data,
        "peer": arm.peer,
        "peers": hashlib.sha256(sources).hexdigest() if arm.peer else None,
        "device": device,
        "versions": [version("perceiver-pipeline"), torch.__version__],
    }
    return hashlib.sha256(json.dumps(text, sort_keys=True, default=str).encode()).hexdigest()


def summary_of(
    study: Study, trials: Sequence[Trial]
) -> tuple[Found, dict[str, list[dict[str, Any]]]]:
    """Return the means and differences of finished trials, and the results by label."""
    results: dict[str, list[dict[str, Any]]] = {arm.label: [] for arm in study.arms}
    for trial in trials:  # seed by seed
        found = read_result(trial)
        assert found is not None  # all have ended
        results[trial.label].append(found)
    values = {label: [each["accuracy"] for each in rows] for label, rows in results.items()}
    means = {label: mean_of(each) for label, each in values.items()}
    pairs = [(pair.arm, pair.base) for pair in study.pairs]
    return Found(means, differences_of(pairs, values)), results


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
    request: Request, seeds: int, base: Config, sets: Mapping[str, ShardSet]
) -> dict[str, Any]:
    counts = next(iter(sets.values())).manifest.counts
    source = "5,000 of MNIST's digits" if request.data is None else f"the images of {request.data}"
    image = image_format(base)
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
        "seeds": seeds,
        "command": request.command(),
        "data": f"{source} ({counts['train']:,} for training, {counts['test']:,} for the test) "
        f"of {image.height} × {image.width} pixels, {base.training.epochs} epochs",
        "machine": " and ".join(filter(None, (device, cores))),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "date": time.strftime("%Y-%m-%d"),
    }


def _minutes(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> float:
    return sum(float(each["seconds"]) for rows in results.values() for each in rows) / 60
