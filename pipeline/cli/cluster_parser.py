"""The arguments of the verbs for clusters elsewhere, and their help."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

TARGETS = ("kuberay", "slurm", "aws", "gcp", "local")
"""The kinds of clusters of `perceiver cluster render` (`pipeline.deploy.render`)."""


def add_config(verb: argparse.ArgumentParser) -> None:
    """Add a configuration and changes to it."""
    verb.add_argument("config", metavar="CONFIG", help="YAML file, or a shipped name")
    verb.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes to it")


def add_cluster(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of `perceiver cluster`."""
    verb.add_argument("action", choices=["render"], help="write the files")
    verb.add_argument("target", choices=TARGETS, help="kind of cluster")
    add_config(verb)
    verb.add_argument(
        "--verb",
        dest="job",
        choices=["preprocess", "train", "tune"],
        default="train",
        help="what the cluster's job does (default: train)",
    )
    verb.add_argument(
        "--to", type=Path, metavar="FOLDER", help="folder for the files (default: print the first)"
    )
    verb.add_argument("--only", metavar="FILE", help="write or print this file alone")


def _add_address(verb: argparse.ArgumentParser) -> None:
    address = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    verb.add_argument("--address", default=address, help=f"the cluster's dashboard ({address})")


def add_submit(
    verb: argparse.ArgumentParser, parse: Callable[[list[str]], argparse.Namespace]
) -> None:
    """Add the arguments of `perceiver submit`; `parse` parses the line that is submitted."""
    _add_address(verb)
    verb.add_argument(
        "--detach", "--no-wait", action="store_true", help="do not follow the job's log"
    )
    verb.add_argument(
        "--python", metavar="PATH", help="Python of the cluster's machines (default: this one's)"
    )
    verb.add_argument(
        "--requirements",
        type=Path,
        metavar="FILE",
        help="packages that Ray installs on each machine; our code is sent with the job",
    )
    verb.add_argument(
        "--installer", choices=["uv", "pip"], default="uv", help="what installs them (default: uv)"
    )
    verb.add_argument(
        "--working-dir", type=Path, metavar="FOLDER", help="folder whose files the job needs"
    )
    verb.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="files and folders of it that are not sent",
    )
    verb.add_argument("command", nargs="+", metavar="-- VERB …", help="verb and its arguments")
    verb.set_defaults(parse=parse)


def add_jobs(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of `perceiver jobs`."""
    _add_address(verb)
    verb.add_argument(
        "action", choices=["list", "status", "logs", "stop"], help="what to do with jobs"
    )
    verb.add_argument("job_id", nargs="?", metavar="ID", help="ID that submit has printed")
    verb.add_argument("--follow", action="store_true", help="follow the log until the job ends")
