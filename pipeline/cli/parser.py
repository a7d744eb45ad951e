"""The command line's verbs, their arguments and their help."""

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from pipeline import __version__
from pipeline.cli import cluster_verbs, verbs
from pipeline.cli.arguments import (
    IntermixedParser,
    RedactedParser,
    json_target,
    local_path,
    positive_count,
)
from pipeline.cli.cluster_parser import add_cluster, add_config, add_jobs, add_submit
from pipeline.cli.open_console import open_console
from pipeline.cli.registry_parser import DEFAULT_OUTPUT, Add, add_registry
from pipeline.cli.study_verb import add_study, run_study
from pipeline.workflow import STAGES

PROFILED_STEPS = 5


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line. If it is wrong, the process ends with status 2.

    Returns:
        The arguments. `verb` is the name of the verb, and `run` the function that runs it.
    """
    parser = RedactedParser(
        prog="perceiver",
        description="Train Perceivers on your own media: raw files in, a registered model out.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", parser_class=IntermixedParser
    )

    def add(
        name: str, run: Callable[..., int] | None, help_text: str, *, json_to_file: bool = False
    ) -> argparse.ArgumentParser:
        verb = subparsers.add_parser(name, help=help_text, description=help_text)
        verb.set_defaults(run=run, verb=name, parser=verb)
        if json_to_file:
            verb.add_argument(
                "--json",
                type=json_target,
                nargs="?",
                const="-",
                metavar="FILE",
                help="write the result as JSON to FILE (.json), or end with it on stdout (-)",
            )
        else:
            verb.add_argument(
                "--json", action="store_true", help="end with one JSON object on stdout"
            )
        verb.add_argument("--debug", action="store_true", help="show tracebacks")
        return verb

    _add_stages(add)
    _add_shards(add)
    add_registry(add)
    add_study(add("study", run_study, "answer a question about Perceivers by trainings"))
    _add_bench(add("bench", _no_benchmarks, "measure this code and its peers on this machine"))
    add_cluster(
        add("cluster", cluster_verbs.run_cluster, "write the files that start a cluster elsewhere")
    )
    add_submit(
        add(
            "submit",
            cluster_verbs.run_submit,
            "run a verb as a Ray job: perceiver submit -- train CONFIG …",
        ),
        parse,
    )
    add_jobs(add("jobs", cluster_verbs.run_jobs, "look at the jobs of a cluster, and stop them"))
    return parser.parse_args(argv)


def _add_stages(add: Add) -> None:
    verb = add("demo", verbs.run_demo, "run the whole pipeline on handwritten digits")
    verb.add_argument(
        "--fresh", action="store_true", help="start again, and replace an earlier demo"
    )
    verb.add_argument(
        "--output", type=local_path, default=DEFAULT_OUTPUT, help="folder for all files of the demo"
    )
    verb = add("run", verbs.run_workflow, "go from raw media to a registered model, or on with it")
    add_config(verb)
    verb.add_argument(
        "--until", choices=STAGES, metavar="STAGE", help=f"stop after: {', '.join(STAGES)}"
    )
    verb.add_argument("--fresh", action="store_true", help="replace the earlier results")
    add_config(add("config", verbs.run_config, "print the resolved configuration"))
    _add_plan(add("plan", verbs.run_plan, "tell what a training takes, before a GPU is rented"))
    for name, help_text in (
        ("preprocess", "turn raw media into a shard set (Ray Data)"),
        ("train", "train one model (Ray Train, DeepSpeed)"),
        ("tune", "run a study (Ray Tune)"),
    ):
        verb = add(name, verbs.run_stage, help_text)
        add_config(verb)
        verb.add_argument("--fresh", action="store_true", help="replace an earlier result")
        if name == "tune":
            verb.add_argument(
                "--confirm",
                type=positive_count,
                metavar="N",
                help="train the best settings again from N other seeds (study.confirm)",
            )
        if name == "train":
            verb.add_argument(
                "--profile",
                type=positive_count,
                nargs="?",
                const=PROFILED_STEPS,
                metavar="STEPS",
                help=f"profile some steps with torch's profiler (default: {PROFILED_STEPS})",
            )


def _add_plan(verb: argparse.ArgumentParser) -> None:
    add_config(verb)
    verb.add_argument(
        "--gpu",
        metavar="NAME",
        help="cpu, h100, h200, a100-80, a100-40, l40s, l4, t4, v100-32, rtx4090, … "
        "(default: cpu; h100 with cluster.use_gpu)",
    )
    verb.add_argument("--gpu-memory", type=float, metavar="GIB", help="memory of the device")
    verb.add_argument(
        "--gpu-tflops", type=float, metavar="N", help="its peak at training.precision, dense"
    )
    verb.add_argument("--price", type=float, metavar="N", help="price of one device for an hour")
    verb.add_argument("--samples", type=int, metavar="N", help="training samples, without a set")
    verb.add_argument("--classes", type=int, metavar="N", help="classes or labels, without a set")
    verb.add_argument(
        "--mfu", type=float, metavar="SHARE", help="share of the peak, instead of the estimate"
    )
    verb.add_argument(
        "--failure-hours", type=float, metavar="H", help="mean time between failures of one worker"
    )
    verb.add_argument(
        "--restart-seconds", type=float, metavar="S", help="from a failure to the next step (60)"
    )


def _add_shards(add: Add) -> None:
    verb = add("inspect", verbs.run_inspect, "show what a shard set holds")
    verb.add_argument("shards", metavar="SHARDS", help="folder or URL of a shard set")
    verb = add("verify", verbs.run_verify, "check every byte of a shard set by its hashes")
    verb.add_argument("shards", metavar="SHARDS", help="folder or URL of a shard set")
    verb = add("retry-quarantine", verbs.run_retry_quarantine, "try the quarantined sources again")
    verb.add_argument("shards", metavar="SHARDS", help="folder of a shard set")
    verb.add_argument(
        "overrides",
        nargs="*",
        metavar="data.SPLIT=URL",
        help="where its sources are, with the password or signature that is not stored",
    )
    verb.add_argument("--address", help="Ray cluster to join (default: Ray on this machine)")


def _add_bench(verb: argparse.ArgumentParser) -> None:
    """Add the subjects of the benchmarks. A checkout has them, and an installation does not."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "benchmarks" / "cli.py").is_file() and str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    if find_spec("benchmarks") is None:
        verb.add_argument("subject", nargs="*")
        return
    from benchmarks.cli import add_subjects

    add_subjects(verb, open_console)


def _no_benchmarks(args: argparse.Namespace) -> int:
    from pipeline.errors import UserError

    raise UserError("the benchmarks are not installed; run this from a checkout of the repository")
