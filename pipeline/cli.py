"""The command line: ``perceiver VERB …``.

Imports nothing heavy: each verb's module is imported when the verb runs.
"""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.interrupts import Terminated, terminable
from pipeline.arguments import IntermixedParser, RedactedParser, local_path

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.console import Console

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
LIGHT = ("config", "inspect", "verify")
DEFAULT_OUTPUT = "runs"


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status.

    0: the work is done. 1: it could not be done, or a defect of ours. 2: the input is at fault, in
    one line saying what and how to mend it. 129, 130, 143: ended by SIGHUP, SIGINT (Ctrl-C),
    SIGTERM. 128 + n: killed by signal n, or crashed.

    Args:
        argv: the arguments; None takes the process's own. The verbs that start engines then run in
            a child process (:mod:`pipeline.watcher`).
    """
    args = parse(argv)
    if argv is None and args.verb not in LIGHT:
        from pipeline.watcher import watched

        return watched(args.verb, lambda: _run(args))
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    verb: Callable[[argparse.Namespace], int] = args.run
    try:
        with terminable():
            return verb(args)
    except Terminated as end:
        with contextlib.suppress(OSError):  # the terminal may be what went away
            print(f"perceiver {args.verb}: terminated ({end.name})", file=sys.stderr)
        return 128 + end.number
    except KeyboardInterrupt:
        print(f"perceiver {args.verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return _explain(error, args)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """A command line's arguments; one that cannot be read ends the process with status 2."""
    return _parser().parse_args(argv)


def _explain(error: Exception, args: argparse.Namespace) -> int:
    from pipeline.causes import expected_cause
    from pipeline.errors import GateRefusedError
    from shards.plain import printable
    from shards.redaction import redacted

    if args.debug:
        print(redacted("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    expected = expected_cause(error)
    if expected is None:
        hint = "" if args.debug else "; --debug shows the traceback"
        text = printable(redacted(_foreign(error)))
        print(f"perceiver {args.verb}: {text}{hint}", file=sys.stderr)
        return FAILED
    for line in redacted(str(expected)).splitlines():
        print(f"perceiver {args.verb}: {printable(line)}", file=sys.stderr)
    return FAILED if isinstance(expected, GateRefusedError) else BAD_INPUT


def _foreign(error: Exception) -> str:
    """One line for an error that is none of ours: what the machine or a server did, or a defect."""
    from cluster.ray_failures import read_failure, root_error
    from shards.redaction import shortened

    if failure := read_failure(error):
        return failure.text
    root = root_error(error)
    text = shortened(str(root), 300)
    if type(root).__module__.startswith("mlflow"):
        return f"MLflow does not answer, or refuses what it is asked ({text})"
    return f"unexpected {type(root).__name__}: {text}"


@contextlib.contextmanager
def _console(args: argparse.Namespace, config: "Config | None" = None) -> Iterator["Console"]:
    """The person's console, with everything else in a log file.

    The log lies in the run folder, or, without a configuration, in a temporary file that goes
    unless there was an unexpected error.
    """
    from pipeline.causes import expected_cause
    from pipeline.console import logged
    from pipeline.errors import UserError

    folder = None
    if config is not None:
        folder = config.folder / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output={config.output}: {folder}: {error.strerror}") from None
    with logged({"as_json": args.json}, folder, args.verb) as console:
        try:
            yield console
        except Exception as error:
            if expected_cause(error) is None:
                console.notice(f"log: {console.log}")
            elif console.log is not None:
                if config is None:
                    console.log.unlink()
                else:
                    _remove_if_alone(console.log, config.folder)
            raise
        if config is None and console.log is not None:
            console.log.unlink()


def _remove_if_alone(log: Path, folder: Path) -> None:
    """Leave no folder behind for a run that never began."""
    others = [path for path in folder.rglob("*") if path.is_file() and path.parent != log.parent]
    if others:
        return
    log.unlink()
    for path in (log.parent, *(p for p in folder.glob("*") if p.is_dir()), folder, folder.parent):
        with contextlib.suppress(OSError):
            path.rmdir()


def _config(args: argparse.Namespace) -> int:
    import yaml

    from pipeline.load_config import load_config
    from pipeline.sandbox_report import as_comments, sandbox_here
    from pipeline.strict_json import to_json
    from shards.redaction import redacted_tree

    tree = redacted_tree(load_config(args.config, args.overrides).tree())
    if args.json:
        print(to_json({**tree, "sandbox": sandbox_here()}))
    else:
        print(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), end="")
        print(as_comments(sandbox_here()), end="")
    return OK


def _stage(args: argparse.Namespace) -> int:
    """A verb that takes a configuration and ``--fresh``: preprocess, train, tune."""
    import importlib

    from pipeline.load_config import load_config

    config = load_config(args.config, args.overrides)
    with _console(args, config) as console:
        module = importlib.import_module(f"pipeline.{args.verb}")
        result = getattr(module, args.verb)(config, console, fresh=args.fresh)
        module.report(result, console)
        console.result(result)
    return OK


def _demo(args: argparse.Namespace) -> int:
    from pipeline.demo import demo, demo_config, report

    config = demo_config(args.output)
    with _console(args, config) as console:
        result = demo(config, console, fresh=args.fresh)
        report(result, console)
        console.result(result)
    return OK


def _verify(args: argparse.Namespace) -> int:
    from pipeline.strict_json import to_json
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


def _inspect(args: argparse.Namespace) -> int:
    from pipeline.console import Console
    from pipeline.inspect_shards import inspect_shards, report

    console = Console(as_json=args.json)
    result = inspect_shards(args.shards)
    report(result, console)
    console.result(result)
    return OK


def _promote(args: argparse.Namespace) -> int:
    with _console(args) as console:
        from pipeline.tracking import registry

        if args.rollback:
            return _rollback(args, console)
        from pipeline.errors import UserError
        from pipeline.promote import promote, report

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
    from pipeline.rollback import report, rollback
    from pipeline.tracking import registry, run_config

    for option in ("split", "min_gain", "alpha"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option.replace('_', '-')}: decides nothing with --rollback")
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


def _predict(args: argparse.Namespace) -> int:
    with _console(args) as console:
        from pipeline.predict import predict, report
        from pipeline.tracking import registry

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


def _submit(args: argparse.Namespace) -> int:
    with _console(args) as console:
        from pipeline.submit import submit

        result = submit(args.command, console, address=args.address, wait=not args.no_wait)
        console.result(result)
    return OK if result["status"] in ("SUCCEEDED", "PENDING", "RUNNING") else FAILED


def _retry_quarantine(args: argparse.Namespace) -> int:
    with _console(args) as console:
        from pipeline.overrides import places_of_overrides
        from pipeline.preprocess import report, retry_quarantine

        places = places_of_overrides(args.overrides)
        result = retry_quarantine(args.shards, console, address=args.address, places=places)
        report(result, console)
        console.result(result)
    return OK


def _parser() -> argparse.ArgumentParser:
    from pipeline import __version__

    parser = RedactedParser(
        prog="perceiver",
        description="Train Perceivers on your own media: raw files in, a registered model out.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", parser_class=IntermixedParser
    )

    def add(name: str, run: Callable[..., int] | None, help_text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=help_text, description=help_text)
        verb.set_defaults(run=run, verb=name, parser=verb)
        verb.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
        verb.add_argument("--debug", action="store_true", help="show tracebacks")
        return verb

    def with_config(verb: argparse.ArgumentParser) -> None:
        verb.add_argument("config", metavar="CONFIG", help="YAML file, or a shipped name")
        verb.add_argument(
            "overrides", nargs="*", metavar="section.field=value", help="changes to it"
        )

    def with_registry(verb: argparse.ArgumentParser) -> None:
        verb.add_argument(
            "--tracking-uri", help="MLflow's (default: MLFLOW_TRACKING_URI, or OUTPUT/mlflow.db)"
        )
        verb.add_argument(
            "--output",
            type=local_path,
            default=DEFAULT_OUTPUT,
            help="folder that holds mlflow.db",
        )

    verb = add("demo", _demo, "all of it on handwritten digits, from PNG files to predictions")
    verb.add_argument("--fresh", action="store_true", help="start again from nothing")
    verb.add_argument(
        "--output", type=local_path, default=DEFAULT_OUTPUT, help="folder that takes everything"
    )

    with_config(add("config", _config, "print the resolved configuration"))
    for name, help_text in (
        ("preprocess", "raw media to a shard set (Ray Data)"),
        ("train", "one training run (Ray Train, DeepSpeed)"),
        ("tune", "a study (Ray Tune)"),
    ):
        verb = add(name, _stage, help_text)
        with_config(verb)
        verb.add_argument("--fresh", action="store_true", help="replace what is there")

    verb = add("inspect", _inspect, "what a shard set holds")
    verb.add_argument("shards", metavar="SHARDS", help="folder or URL of a shard set")
    verb = add("verify", _verify, "every byte of a shard set against its hashes")
    verb.add_argument("shards", metavar="SHARDS", help="folder or URL of a shard set")

    verb = add("retry-quarantine", _retry_quarantine, "the sources again that gave no sample")
    verb.add_argument("shards", metavar="SHARDS", help="folder of a shard set")
    verb.add_argument(
        "overrides",
        nargs="*",
        metavar="data.SPLIT=URL",
        help="where its sources lie, with the password or signature that is not kept",
    )
    verb.add_argument("--address", help="Ray cluster to join (default: Ray on this machine)")

    verb = add("promote", _promote, "register a run's model if it beats the champion (MLflow)")
    verb.add_argument(
        "run_id", metavar="RUN", nargs="?", help="MLflow run of a training, trial or study"
    )
    verb.add_argument("--name", help="registered model (default: the run's registry.model_name)")
    verb.add_argument("--alias", help="alias to move (default: the run's registry.alias)")
    verb.add_argument("--split", help="split that decides (default: validation)")
    verb.add_argument(
        "--min-gain", type=float, help="least gain in accuracy (default: the run's registry)"
    )
    verb.add_argument(
        "--alpha", type=float, help="chance of a false gain (default: the run's registry)"
    )
    verb.add_argument(
        "--shards", metavar="URL", help="of the run's set, with the password that is not kept"
    )
    verb.add_argument(
        "--rollback",
        action="store_true",
        help="move the alias back to the version before; RUN or --name says of which model",
    )
    with_registry(verb)

    verb = add("predict", _predict, "a registered model on raw files")
    verb.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    verb.add_argument(
        "inputs", nargs="+", type=local_path, metavar="INPUT", help="files and folders"
    )
    verb.add_argument("--to", type=Path, metavar="FILE", help="also write .jsonl, .csv or .parquet")
    verb.add_argument(
        "--max-bad-fraction", type=float, default=1.0, help="fail above this share of bad files"
    )
    with_registry(verb)

    from pipeline.bench.cli import add_subjects

    verb = add("bench", None, "our figures beside the peers', on this machine")
    add_subjects(verb, _console)

    verb = add("submit", _submit, "run a verb as a Ray job: perceiver submit -- train CONFIG …")
    address = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    verb.add_argument("--address", default=address, help=f"the cluster's dashboard ({address})")
    verb.add_argument("--no-wait", action="store_true", help="do not follow the log")
    verb.add_argument("command", nargs="+", metavar="-- VERB …", help="verb and its arguments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
