"""The arguments of the verbs that work with runs and registered models, and their help."""

import argparse
from collections.abc import Callable
from pathlib import Path

from pipeline.cli import registry_verbs
from pipeline.cli.arguments import (
    count,
    folder_or_name,
    local_path,
    positive_count,
    run_or_model,
)

DEFAULT_OUTPUT = "runs"

Add = Callable[..., argparse.ArgumentParser]
"""Adds a verb with its name, the function that runs it, and its help."""


def add_registry(add: Add) -> None:
    """Add the verbs, by the function that adds one."""
    _add_evaluate(
        add(
            "evaluate",
            registry_verbs.run_evaluate,
            "evaluate a run or a registered model on a split of a shard set",
            json_to_file=True,
        )
    )
    verb = add(
        "promote",
        registry_verbs.run_promote,
        "register a run's model if it beats the champion (MLflow)",
    )
    verb.add_argument(
        "run_id", metavar="RUN", nargs="?", help="MLflow run of a training, trial or study"
    )
    verb.add_argument("--name", help="registered model (default: the run's registry.model_name)")
    verb.add_argument("--alias", help="alias to move (default: the run's registry.alias)")
    verb.add_argument("--split", help="split that decides (default: validation)")
    verb.add_argument(
        "--set",
        dest="judged_on",
        type=folder_or_name,
        metavar="SET",
        help="folder or URL of the set that decides (default: the run's own)",
    )
    verb.add_argument(
        "--set-digest",
        metavar="DIGEST",
        help="digest of the only set that may decide, or its first digits (default: the run's)",
    )
    verb.add_argument(
        "--min-gain", type=float, help="smallest gain in the selection metric (default: the run's)"
    )
    verb.add_argument(
        "--alpha", type=float, help="largest p-value that passes (default: the run's)"
    )
    verb.add_argument(
        "--shards",
        metavar="URL",
        help="address of the run's set, with the password that is not stored",
    )
    verb.add_argument(
        "--dry-run", action="store_true", help="judge, and write nothing: no version, tag or alias"
    )
    verb.add_argument(
        "--rollback",
        action="store_true",
        help="move the alias back to the version before; give the model by RUN or --name",
    )
    _add_tracking(verb)

    verb = add("registry", registry_verbs.run_registry, "show registered models and their history")
    verb.add_argument(
        "action", choices=["history", "list"], help="who was the champion when; all models"
    )
    verb.add_argument("name", metavar="NAME", nargs="?", help="registered model of the history")
    verb.add_argument("--alias", help="alias of the history (default: champion)")
    _add_tracking(verb)

    verb = add("export", registry_verbs.run_export, "write a run's weights as one safetensors file")
    verb.add_argument(
        "run_id",
        type=run_or_model,
        metavar="RUN",
        help="MLflow run of a training, trial or study, or the folder or URL of a run",
    )
    verb.add_argument(
        "--to", type=local_path, metavar="FOLDER|URL", help="new folder (default: NAME-step-STEP)"
    )
    verb.add_argument(
        "--checkpoint", default="best", metavar="best|last|STEP", help="which one (default: best)"
    )
    verb.add_argument(
        "--shards",
        metavar="URL",
        help="address of the run's set, with the password that is not stored",
    )
    verb.add_argument("--onnx", action="store_true", help="write model.onnx, too")
    _add_tracking(verb)

    verb = add("predict", registry_verbs.run_predict, "predict raw files with a registered model")
    verb.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    verb.add_argument(
        "inputs",
        nargs="+",
        type=local_path,
        metavar="INPUT",
        help="files, folders, listings (.csv, .parquet, .jsonl), tars, URLs of these",
    )
    verb.add_argument(
        "--to",
        type=local_path,
        metavar="FILE|FOLDER|URL",
        help="also write .jsonl, .csv or .parquet; or fill a folder, which a kill only delays",
    )
    verb.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="processes that fill a folder (default: 0, this one, for few files; for many, one for "
        "each GPU or CPU)",
    )
    verb.add_argument("--address", help="Ray cluster to join (default: Ray on this machine)")
    verb.add_argument("--fresh", action="store_true", help="replace what is in the folder")
    verb.add_argument(
        "--max-bad-fraction", type=float, default=1.0, help="fail above this share of bad files"
    )
    _add_tracking(verb)
    _add_serve(
        add("serve", registry_verbs.run_serve, "serve a registered model over HTTP (Ray Serve)")
    )


def _add_serve(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    verb.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    verb.add_argument("--port", type=positive_count, default=8000, help="port (8000)")
    verb.add_argument(
        "--replicas", type=positive_count, default=1, help="copies of the model, one CPU each (1)"
    )
    verb.add_argument("--num-gpus", type=float, default=0.0, help="GPUs of each copy (0)")
    verb.add_argument(
        "--max-batch", type=positive_count, default=32, help="inputs answered together (32)"
    )
    verb.add_argument(
        "--max-body-mib", type=positive_count, default=32, help="largest body of a request (32)"
    )
    verb.add_argument("--timeout", type=float, default=60.0, help="most seconds of a request (60)")
    _add_tracking(verb)


def _add_evaluate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "model",
        type=run_or_model,
        metavar="RUN|MODEL",
        help="folder or URL of a run, MLflow run, models:/NAME@ALIAS or /VERSION, or NAME",
    )
    verb.add_argument(
        "rest",
        nargs="*",
        type=folder_or_name,
        metavar="SET|section.field=value",
        help="folder or URL of a shard set (default: the model's own), and changes to settings",
    )
    verb.add_argument(
        "--split", default="validation", help="split of the set (default: validation)"
    )
    verb.add_argument("--html", type=Path, metavar="FILE", help="write a report as one HTML file")
    verb.add_argument(
        "--shards",
        metavar="URL",
        help="address of the model's own set, with the password that is not stored",
    )
    _add_tracking(verb)


def _add_tracking(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--tracking-uri", help="MLflow's URI (default: MLFLOW_TRACKING_URI, or OUTPUT/mlflow.db)"
    )
    verb.add_argument(
        "--output", type=local_path, default=DEFAULT_OUTPUT, help="folder that holds mlflow.db"
    )
