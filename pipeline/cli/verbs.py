"""The functions that run the verbs of the command line. Each returns its exit status.

This module imports nothing heavy: each verb's module is imported when the verb runs.
"""

import argparse

from pipeline.cli.open_console import open_console

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


def run_workflow(args: argparse.Namespace) -> int:
    """Do every stage of a configuration that is not yet done."""
    from cluster.ray_session import in_ray_job
    from pipeline.config.load import load_config
    from pipeline.deploy.secret_values import require_secrets
    from pipeline.workflow.run import report, run

    config = load_config(args.config, args.overrides)
    if in_ray_job():
        require_secrets(config.cluster.deploy)
    with open_console(args, config) as console:
        result = run(config, console, until=args.until, fresh=args.fresh)
        report(result, console)
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
