"""`perceiver demo` runs every verb, one after the other, on real digits."""

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.ray_session import ray_session
from pipeline.config.folders import local_folder
from pipeline.config.load import load_config
from pipeline.config.sqlite_uri import sqlite_path
from pipeline.config.tree import Config
from pipeline.demo.digits import digits_state, write_digits
from pipeline.evaluation.best import report_best
from pipeline.preprocess.preprocess import preprocess
from pipeline.preprocess.preprocess import report as report_preprocess
from pipeline.registry.predict import predict
from pipeline.registry.promote import promote
from pipeline.registry.promote import report as report_promote
from pipeline.registry.registration import champion_of
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.runs.mlflow_errors import mlflow_answers
from pipeline.runs.records import RunRecord, read_run_record, write_run_record
from pipeline.training.result import report as report_train
from pipeline.training.train import train
from pipeline.tuning.report import report as report_tune
from pipeline.tuning.tune import tune

CLUSTER_STAGES = ("preprocess", "train", "tune")
SHOWN = 10


def demo_config(output: str) -> Config:
    """Return the shipped configuration `digits`, with all of its paths in `output`."""
    raw = Path(output) / "digits" / "raw"
    return load_config("digits", [f"output={output}", f"data.train={raw / 'train'}"])


def demo(config: Config, console: Console, *, fresh: bool = False) -> dict[str, Any]:
    """Turn PNG files into shards, train, search, register the best model, and predict unseen files.

    Stages are skipped if their output exists and verifies.

    Args:
        config: The configuration from `demo_config`.
        console: The console that shows the progress.
        fresh: Whether to start again from nothing.

    Returns:
        `test_accuracy`, `test_files`, `model_uri`, `shards`, `stages` (`name`, `seconds` of its
        last run, `skipped`), `trials` (`params`, `accuracy`, `forward_flops` …), and `predictions`
        (the first few).
    """
    raw = local_folder(config.folder, "the demo") / "raw"
    if fresh:
        start_again(config)
    stages: list[dict[str, Any]] = []

    def stage(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        console.notice(f"── {name} ──")
        result = work()
        stages.append({"name": name, "seconds": result["seconds"], "skipped": result["skipped"]})
        if result["skipped"]:
            console.notice(f"{name}: its output is there and verifies; skipped")
        return result

    stage("images", lambda: _recorded(config, "images", {}, lambda: write_digits(raw),
                                      lambda made: digits_state(raw) == made))  # fmt: skip
    with contextlib.ExitStack() as stack:
        records = [read_run_record(config.folder, name) for name in CLUSTER_STAGES]
        if not all(record and record.done for record in records):
            stack.enter_context(ray_session(config.cluster.address))
        shards = stage("preprocess", lambda: preprocess(config, console))
        report_preprocess(shards, console)
        training = stage("train", lambda: train(config, console, report_best=report_best))
        report_train(training, console)
        study = stage("tune", lambda: tune(config, console))
        report_tune(study, console)
    mlflow_client = client(config.tracking_uri)
    best = {"run_id": study["best"]["run_id"]}
    model = stage(
        "promote",
        lambda: _recorded(
            config,
            "promote",
            best,
            lambda: promote(mlflow_client, study["best"]["run_id"], console),
            lambda made: _is_registered(mlflow_client, config, made),
        ),
    )
    report_promote(model, console)
    test = stage(
        "predict",
        lambda: _recorded(
            config,
            "predict",
            {"model": model["model_uri"], "version": model["version"], **digits_state(raw)},
            lambda: _test(mlflow_client, model["model_uri"], raw / "test", console),
            lambda made: True,
        ),
    )
    return {
        "test_accuracy": test["accuracy"],
        "test_files": test["files"],
        "model_uri": model["model_uri"],
        "shards": shards["shards"],
        "stages": stages,
        "trials": study["trials"],
        "predictions": test["predictions"],
    }


def report(result: dict[str, Any], console: Console) -> None:
    """Show a person what `demo` returned."""
    console.table(
        "some of the test files",
        ("file", "class", "probability"),
        [(p["source"], p["label"], f"{p['probability']:.4f}") for p in result["predictions"]],
    )
    console.table(
        "stages",
        ("stage", "seconds", ""),
        [
            (stage["name"], f"{stage['seconds']:.1f}", "skipped" if stage["skipped"] else "")
            for stage in result["stages"]
        ],
    )
    console.say(
        f"test accuracy {result['test_accuracy']:.4f} on {result['test_files']} PNG files that "
        f"{result['model_uri']} never saw"
    )


def start_again(config: Config) -> None:
    """Remove the demo's run folder and its alias, so that nothing is left to skip or beat."""
    database = sqlite_path(config.tracking_uri)
    if database is None or database.is_file():
        mlflow_client = client(config.tracking_uri)  # before anything is removed
        name, alias = config.registry.model_name, config.registry.alias
        if champion_of(mlflow_client, name, alias) is not None:
            with mlflow_answers(f"{name}@{alias}"):
                mlflow_client.delete_registered_model_alias(name, alias)
    shutil.rmtree(local_folder(config.folder, "the demo"), ignore_errors=True)


def _recorded(
    config: Config,
    name: str,
    fingerprint: dict[str, Any],
    work: Callable[[], dict[str, Any]],
    verifies: Callable[[dict[str, Any]], bool],
) -> dict[str, Any]:
    """Do `work`, unless its record has this fingerprint and its output verifies."""
    record = read_run_record(config.folder, name)
    if record and record.done and record.fingerprint == fingerprint and verifies(record.result):
        return {**record.result, "seconds": record.seconds, "skipped": True}
    started = time.time()
    result = work()
    seconds = time.time() - started
    write_run_record(config.folder, RunRecord(name, fingerprint, result, seconds, done=True))
    return {**result, "seconds": seconds, "skipped": False}


def _is_registered(mlflow_client: Any, config: Config, made: dict[str, Any]) -> bool:
    """Return whether the alias still points to this version."""
    version = champion_of(mlflow_client, config.registry.model_name, config.registry.alias)
    return version is not None and str(version.version) == made["version"]


def _test(mlflow_client: Any, model_uri: str, folder: Path, console: Console) -> dict[str, Any]:
    """Load the model by its alias and classify every test file, which only this stage uses."""
    answers = predict(mlflow_client, model_uri, [str(folder)], console)["predictions"]
    right = sum(answer["label"] == Path(answer["source"]).parent.name for answer in answers)
    step = max(1, len(answers) // SHOWN)
    return {
        "accuracy": right / len(answers),
        "files": len(answers),
        "predictions": answers[::step][:SHOWN],
    }
