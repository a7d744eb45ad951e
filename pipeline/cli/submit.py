"""`perceiver submit` runs a verb as a Ray job."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cluster.jobs import run_job
from pipeline.cli.arguments import spelled
from pipeline.config.load import load_config
from pipeline.config.tracking_uri import VARIABLE, named_tracking_uri
from pipeline.errors import UserError
from pipeline.preprocess.identity import source_addresses
from pipeline.runs.console import Console

VERBS = ("preprocess", "train", "tune", "demo", "evaluate", "promote", "predict")


def submit(
    command: list[str],
    console: Console,
    *,
    parse: Callable[[list[str]], argparse.Namespace],
    address: str,
    wait: bool,
) -> dict[str, Any]:
    """Submit `python -m pipeline VERB …` to a running cluster, and follow its log.

    Only the resolved configuration is sent with the job. Relative paths become absolute on this
    machine. Every machine of the cluster must see these folders, and must have this environment's
    Python at the same path.

    Args:
        command: The verb and its arguments.
        console: The console that shows the log.
        parse: The function that parses a command line of `perceiver`.
        address: The address of the cluster's dashboard, `http://host:port`.
        wait: Whether to follow the log to the end.

    Returns:
        `job_id` and `status`.

    Raises:
        UserError: There is no such verb, or its configuration is wrong. Nothing was sent.
        ClusterError: No cluster answers, or it refuses the job.
    """
    if command[0] not in VERBS:
        raise UserError(f"{command[0]}: not a verb for a job; one of {', '.join(VERBS)}")
    args = parse(command)
    uri = named_tracking_uri(getattr(args, "tracking_uri", None))
    with tempfile.TemporaryDirectory(prefix="perceiver-job-") as folder:
        if "overrides" in args:
            args = _with_resolved_config(args, Path(folder))
        return run_job(
            # -P: the job's working directory may hold a folder with the name of a package.
            ["-P", "-m", "pipeline", *spelled(args)],
            address=address,
            working_dir=Path(folder),
            environment={VARIABLE: uri} if uri else {},
            wait=wait,
            follow=console.say,
        )


def _with_resolved_config(args: argparse.Namespace, folder: Path) -> argparse.Namespace:
    """Return the same command line with its configuration resolved and written into `folder`.

    The file keeps its name, because errors begin with it.
    """
    config = load_config(args.config, args.overrides)
    tree = config.tree()
    tree["data"] |= source_addresses(config.data)
    name = f"{Path(args.config).stem}.yaml"
    (folder / name).write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), "utf-8")
    return argparse.Namespace(**{**vars(args), "config": name, "overrides": []})
