"""`perceiver study`: its arguments, and the function that runs it.

This module imports nothing heavy: the study's module is imported when the verb runs.
"""

import argparse
from pathlib import Path

from pipeline.cli.arguments import count, local_path, positive_count
from pipeline.cli.open_console import open_console
from pipeline.cli.registry_parser import DEFAULT_OUTPUT

SCALES, DEVICES = ("small", "full"), ("auto", "cpu", "cuda")


def add_study(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("name", metavar="NAME", nargs="?", help="the study; without, they are listed")
    verb.add_argument(
        "overrides",
        nargs="*",
        metavar="section.field=value",
        help="change the configuration of all arms, such as training.epochs=4",
    )
    verb.add_argument("--list", action="store_true", help="list the studies and their questions")
    verb.add_argument(
        "--scale",
        choices=SCALES,
        default="small",
        help="small: digits, on two CPU cores; full: ImageNet's size, on GPUs (default: small)",
    )
    verb.add_argument(
        "--device", choices=DEVICES, default="auto", help="of each training (default: auto)"
    )
    verb.add_argument(
        "--seeds", type=positive_count, metavar="N", help="seeds of each arm, at least 2"
    )
    verb.add_argument(
        "--first-seed",
        type=count,
        default=0,
        metavar="N",
        help="the first of the seeds (default: 0)",
    )
    verb.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="the NAME.json of a page with other seeds: say whether these means agree with it",
    )
    verb.add_argument(
        "--data", type=Path, metavar="FOLDER", help="images of --scale full: train and test"
    )
    verb.add_argument("--fresh", action="store_true", help="forget the results of an earlier run")
    verb.add_argument(
        "--docs", type=Path, metavar="FOLDER", help="copy the page there, and write the index"
    )
    verb.add_argument(
        "--tracking-uri", help="MLflow's URI (default: MLFLOW_TRACKING_URI, or OUTPUT/mlflow.db)"
    )
    verb.add_argument(
        "--output", type=local_path, default=DEFAULT_OUTPUT, help="folder for all files of a study"
    )


def run_study(args: argparse.Namespace) -> int:
    """List the studies, or run one and write its page."""
    from pipeline.runs.console import Console

    if args.name is None or args.list:
        from pipeline.studies.questions.table import STUDIES

        console = Console(as_json=args.json)
        rows = [(each.name, each.question) for each in STUDIES.values()]
        console.table("studies", ("name", "question"), rows)
        console.result({"studies": [{"name": name, "question": text} for name, text in rows]})
        return 0
    with open_console(args) as console:
        from pipeline.studies.conduct import conduct, report
        from pipeline.studies.request import Request

        request = Request(
            name=args.name,
            scale=args.scale,
            device=args.device,
            seeds=args.seeds,
            first_seed=args.first_seed,
            output=args.output,
            data=args.data,
            docs=args.docs,
            tracking_uri=args.tracking_uri,
            against=args.against,
            fresh=args.fresh,
            overrides=tuple(args.overrides),
        )
        result = conduct(request, console)
        report(result, console)
        console.result(result)
    return 0
