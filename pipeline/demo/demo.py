"""`perceiver demo` runs every verb, one after the other, on real digits."""

import shutil
from pathlib import Path
from typing import Any

from pipeline.config.folders import local_folder
from pipeline.config.load import load_config
from pipeline.config.sqlite_uri import sqlite_path
from pipeline.config.tree import Config
from pipeline.demo.digits import digits_state, write_digits
from pipeline.registry.predict import predict
from pipeline.registry.registration import champion_of
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.runs.mlflow_errors import mlflow_answers
from pipeline.workflow.model_stages import (
    preprocess_stage,
    promote_stage,
    train_stage,
    tune_stage,
)
from pipeline.workflow.stages import Results, Stage, recorded, run_stages, show_stages

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
        last run, `skipped`, `outcome`), `trials` (`params`, `accuracy`, `forward_flops` …), and
        `predictions` (the first few).
    """
    raw = local_folder(config.folder, "the demo") / "raw"
    if fresh:
        start_again(config)
    stages = [
        _images_stage(config, raw),
        preprocess_stage(config, console),
        train_stage(config, console),
        tune_stage(config, console),
        promote_stage(config, console, _best_trial),
        _predict_stage(config, console, raw),
    ]
    results, done = run_stages(config, stages, console)
    test = results["predict"]
    return {
        "test_accuracy": test["accuracy"],
        "test_files": test["files"],
        "model_uri": results["promote"]["model_uri"],
        "shards": results["preprocess"]["shards"],
        "stages": done,
        "trials": results["tune"]["trials"],
        "predictions": test["predictions"],
    }


def report(result: dict[str, Any], console: Console) -> None:
    """Show a person what `demo` returned."""
    console.table(
        "some of the test files",
        ("file", "class", "probability"),
        [(p["source"], p["label"], f"{p['probability']:.4f}") for p in result["predictions"]],
    )
    show_stages(result["stages"], console, outcomes=False)
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


def _images_stage(config: Config, raw: Path) -> Stage:
    def work(_: Results) -> dict[str, Any]:
        return recorded(
            config, "images", {}, lambda: write_digits(raw), lambda made: digits_state(raw) == made
        )

    return Stage("images", work, lambda result: f"{result['files']} PNG files")


def _best_trial(results: Results) -> dict[str, Any]:
    best: dict[str, Any] = results["tune"]["best"]
    return best


def _predict_stage(config: Config, console: Console, raw: Path) -> Stage:
    """Return the stage that classifies every test file, which only this stage uses."""

    def work(results: Results) -> dict[str, Any]:
        model = results["promote"]
        answered_by = {"model": model["model_uri"], "version": model["version"]}
        return recorded(
            config,
            "predict",
            {**answered_by, **digits_state(raw)},
            lambda: _test(client(config.tracking_uri), model["model_uri"], raw / "test", console),
            lambda made: True,
        )

    def outcome(result: dict[str, Any]) -> str:
        return f"accuracy {result['accuracy']:.4f} on {result['files']} files"

    return Stage("predict", work, outcome)


def _test(mlflow_client: Any, model_uri: str, folder: Path, console: Console) -> dict[str, Any]:
    answers = predict(mlflow_client, model_uri, [str(folder)], console)["predictions"]
    right = sum(answer["label"] == Path(answer["source"]).parent.name for answer in answers)
    step = max(1, len(answers) // SHOWN)
    return {
        "accuracy": right / len(answers),
        "files": len(answers),
        "predictions": answers[::step][:SHOWN],
    }
