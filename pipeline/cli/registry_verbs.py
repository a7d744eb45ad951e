"""The functions that run the verbs for runs and registered models. Each returns its exit status.

This module imports nothing heavy: each verb's module is imported when the verb runs.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.open_console import open_console

if TYPE_CHECKING:
    from pipeline.runs.console import Console

OK = 0


def run_promote(args: argparse.Namespace) -> int:
    """Register a run's model if it beats the champion, or roll the alias back.

    Raises:
        UserError: The run is missing, or the model cannot be promoted.
    """
    with open_console(args) as console:
        from pipeline.runs.mlflow_client import registry

        if args.rollback:
            return _rollback(args, console)
        from pipeline.errors import UserError
        from pipeline.registry.promote import promote, report

        if args.run_id is None:
            raise UserError("RUN is missing: the MLflow run of a training, trial or study")
        result = promote(
            registry(args.tracking_uri, args.output),
            args.run_id,
            console,
            name=args.name,
            alias=args.alias,
            split=args.split or "validation",
            min_gain=args.min_gain,
            alpha=args.alpha,
            shards=args.shards,
            judged_on=args.judged_on,
            set_digest=args.set_digest,
            dry_run=args.dry_run,
        )
        report(result, console)
        console.result(result)
    return OK


def _rollback(args: argparse.Namespace, console: "Console") -> int:
    from pipeline.errors import UserError
    from pipeline.registry.rollback import report, rollback
    from pipeline.runs.mlflow_client import registry
    from pipeline.runs.tracking import run_config

    given = {
        "--split": args.split,
        "--min-gain": args.min_gain,
        "--alpha": args.alpha,
        "--set": args.judged_on,
        "--set-digest": args.set_digest,
        "--dry-run": args.dry_run or None,
    }
    for option, value in given.items():
        if value is not None:
            raise UserError(f"{option}: has no effect with --rollback")
    if args.run_id is None and args.name is None:
        raise UserError("--rollback: name the registered model with --name, or give a RUN of it")
    mlflow_client = registry(args.tracking_uri, args.output)
    name, alias = args.name, args.alias
    if args.run_id is not None:
        rules = run_config(mlflow_client, args.run_id).registry
        name, alias = name or rules.model_name, alias or rules.alias
    result = rollback(mlflow_client, console, name=name, alias=alias or "champion")
    report(result, console)
    console.result(result)
    return OK


def run_registry(args: argparse.Namespace) -> int:
    """Show who was the champion when, or all registered models.

    Raises:
        UserError: The name of the model is missing, or has no effect.
    """
    with open_console(args) as console:
        from pipeline.errors import UserError
        from pipeline.registry.history import history, list_models, report_history, report_models
        from pipeline.runs.mlflow_client import registry

        if args.action == "list":
            if args.name is not None or args.alias is not None:
                raise UserError("registry list: takes no NAME and no --alias; it shows all models")
            result = list_models(registry(args.tracking_uri, args.output))
            report_models(result, console)
        else:
            if args.name is None:
                raise UserError("registry history: NAME of the registered model is missing")
            alias = args.alias or "champion"
            result = history(registry(args.tracking_uri, args.output), args.name, alias)
            report_history(result, console)
        console.result(result)
    return OK


def run_evaluate(args: argparse.Namespace) -> int:
    """Evaluate a run or a registered model.

    Raises:
        UserError: There are several sets.
    """
    as_json = args.json == "-"
    with open_console(argparse.Namespace(**{**vars(args), "json": as_json})) as console:
        from pipeline.errors import UserError
        from pipeline.evaluation.console_report import report
        from pipeline.evaluation.evaluate import evaluate, split_arguments
        from pipeline.runs.mlflow_client import registry

        sets, overrides = split_arguments(args.rest)
        if len(sets) > 1:
            raise UserError(f"{', '.join(sets)}: give one shard set at most")
        output = _output_beside(args.model, args.output)
        result = evaluate(
            registry(args.tracking_uri, output),
            args.model,
            console,
            given_set=sets[0] if sets else None,
            split=args.split,
            overrides=overrides,
            shards=args.shards,
            output=output,
            json_file=None if as_json or args.json is None else Path(args.json),
            html_file=args.html,
        )
        report(result, console)
        console.result(result)
    return OK


def run_export(args: argparse.Namespace) -> int:
    """Write the weights of a checkpoint into one file."""
    with open_console(args) as console:
        from pipeline.registry.export import export, report
        from pipeline.runs.mlflow_client import registry

        result = export(
            registry(args.tracking_uri, _output_beside(args.run_id, args.output)),
            args.run_id,
            console,
            to=args.to,
            which=args.checkpoint,
            shards=args.shards,
            onnx=args.onnx,
        )
        report(result, console)
        console.result(result)
    return OK


def _output_beside(named: str, output: str) -> str:
    """Return the folder that holds `mlflow.db`: beside the folder of a named run, or `--output`."""
    beside = Path(named).parent
    return str(beside) if "://" not in named and (beside / "mlflow.db").is_file() else output


def run_predict(args: argparse.Namespace) -> int:
    """Predict raw files with a registered model."""
    with open_console(args) as console:
        from pipeline.registry.predict import predict, report
        from pipeline.runs.mlflow_client import registry

        mlflow_client = registry(args.tracking_uri, args.output)
        result = predict(
            mlflow_client,
            args.model,
            args.inputs,
            console,
            output=args.to,
            max_bad_fraction=args.max_bad_fraction,
            workers=args.workers,
            address=args.address,
            fresh=args.fresh,
        )
        report(result, console)
        console.result(result)
    return OK


def run_serve(args: argparse.Namespace) -> int:
    """Serve a registered model over HTTP until it is stopped."""
    with open_console(args) as console:
        from pipeline.config.tracking_uri import tracking_uri
        from pipeline.runs.mlflow_client import registry
        from pipeline.serving.serve import ServeOptions, serve_model

        options = ServeOptions(
            host=args.host,
            port=args.port,
            replicas=args.replicas,
            num_gpus=args.num_gpus,
            max_batch=args.max_batch,
            max_body_mib=args.max_body_mib,
            timeout=args.timeout,
        )
        uri = tracking_uri(args.tracking_uri, args.output)
        serve_model(
            registry(args.tracking_uri, args.output),
            args.model,
            console,
            options,
            tracking_uri=uri,
        )
    return OK
