"""The functions that run the verbs of the command line. Each returns its exit status.

This module imports nothing heavy: each verb's module is imported when the verb runs.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.open_console import open_console

if TYPE_CHECKING:
    from pipeline.runs.console import Console

OK, FAILED = 0, 1


def run_config(args: argparse.Namespace) -> int:
    """Print the resolved configuration and the state of the sandbox."""
    import yaml

    from pipeline.cli.sandbox_report import as_comments, sandbox_here
    from pipeline.config.load import load_config
    from pipeline.runs.strict_json import to_json
    from shards.redaction import redacted_tree

    tree = redacted_tree(load_config(args.config, args.overrides).tree())
    if args.json:
        print(to_json({**tree, "sandbox": sandbox_here()}))
    else:
        print(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), end="")
        print(as_comments(sandbox_here()), end="")
    return OK


_STAGES = {
    "preprocess": ("pipeline.preprocess.preprocess", "pipeline.preprocess.preprocess"),
    "train": ("pipeline.training.train", "pipeline.training.result"),
    "tune": ("pipeline.tuning.tune", "pipeline.tuning.report"),
}
"""The module of each verb, which has a function of its name, and the module that has `report`."""


def run_stage(args: argparse.Namespace) -> int:
    """Run a verb that takes a configuration and `--fresh`: preprocess, train or tune."""
    import importlib

    from cluster.ray_session import in_ray_job
    from pipeline.config.load import load_config
    from pipeline.deploy.secret_values import require_secrets

    confirm = getattr(args, "confirm", None)
    overrides = [] if confirm is None else [f"study.confirm={confirm}"]
    config = load_config(args.config, [*args.overrides, *overrides])
    if in_ray_job():
        require_secrets(config.cluster.deploy)
    with open_console(args, config) as console:
        module, reporter = map(importlib.import_module, _STAGES[args.verb])
        options = {}
        if args.verb == "train":
            from pipeline.evaluation.best import report_best

            options = {"profile": args.profile or 0, "report_best": report_best}
        result = getattr(module, args.verb)(config, console, fresh=args.fresh, **options)
        reporter.report(result, console)
        console.result(result)
    return OK


def run_plan(args: argparse.Namespace) -> int:
    """Plan a training. Return 1 if something would not work."""
    from pipeline.config.load import load_config
    from pipeline.plan.plan import plan
    from pipeline.plan.report import report
    from pipeline.plan.request import Request, check_request
    from pipeline.runs.console import Console

    request = Request(
        gpu=args.gpu,
        gpu_memory=args.gpu_memory,
        gpu_tflops=args.gpu_tflops,
        price=args.price,
        classes=args.classes,
        samples=args.samples,
        mfu=args.mfu,
        failure_hours=args.failure_hours,
        restart_seconds=args.restart_seconds,
    )
    check_request(request)
    console = Console(as_json=args.json)
    result = plan(load_config(args.config, args.overrides), console, request)
    report(result, console)
    console.result(result)
    return FAILED if result["problems"] else OK


def run_demo(args: argparse.Namespace) -> int:
    """Run the whole demo."""
    from pipeline.demo.demo import demo, demo_config, report

    config = demo_config(args.output)
    with open_console(args, config) as console:
        result = demo(config, console, fresh=args.fresh)
        report(result, console)
        console.result(result)
    return OK


def run_verify(args: argparse.Namespace) -> int:
    """Check every byte of a shard set against its hashes. Return 1 if there are problems."""
    from pipeline.runs.strict_json import to_json
    from shards import ShardSet, verify
    from shards.redaction import redacted

    problems = verify(args.shards)
    if args.json:
        found = [{"file": p.file, "what": p.what} for p in problems]
        print(to_json({"shards": redacted(args.shards), "problems": found}))
    else:
        for problem in problems:
            print(f"{problem.file}: {problem.what}")
        if not problems:
            digest = ShardSet.open(args.shards).digest
            print(f"{redacted(args.shards)}: every byte is as written; {digest}")
    return FAILED if problems else OK


def run_inspect(args: argparse.Namespace) -> int:
    """Show what a shard set holds."""
    from pipeline.preprocess.inspect_shards import inspect_shards, report
    from pipeline.runs.console import Console

    console = Console(as_json=args.json)
    result = inspect_shards(args.shards)
    report(result, console)
    console.result(result)
    return OK


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
        )
        report(result, console)
        console.result(result)
    return OK


def _rollback(args: argparse.Namespace, console: "Console") -> int:
    from pipeline.errors import UserError
    from pipeline.registry.rollback import report, rollback
    from pipeline.runs.mlflow_client import registry
    from pipeline.runs.tracking import run_config

    for option in ("split", "min_gain", "alpha"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option.replace('_', '-')}: has no effect with --rollback")
    if args.run_id is None and args.name is None:
        raise UserError("--rollback: name the registered model with --name, or give a RUN of it")
    mlflow_client = registry(args.tracking_uri, args.output)
    name, alias = args.name, args.alias
    if args.run_id is not None:
        rules = run_config(mlflow_client, args.run_id).registry
        name, alias = name or rules.model_name, alias or rules.alias
    result = rollback(mlflow_client, name=name, alias=alias or "champion")
    report(result, console)
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
        )
        report(result, console)
        console.result(result)
    return OK


def run_retry_quarantine(args: argparse.Namespace) -> int:
    """Try the quarantined sources of a shard set again."""
    with open_console(args) as console:
        from pipeline.config.overrides import sources_of_overrides
        from pipeline.preprocess.preprocess import report, retry_quarantine

        sources = sources_of_overrides(args.overrides)
        result = retry_quarantine(args.shards, console, address=args.address, sources=sources)
        report(result, console)
        console.result(result)
    return OK
