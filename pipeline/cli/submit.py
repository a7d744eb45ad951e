"""`perceiver submit` runs a verb as a Ray job."""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cluster.job_package import JobPackage
from cluster.jobs import run_job
from pipeline.cli.arguments import spelled
from pipeline.config.load import load_config
from pipeline.config.resolved import resolved_tree
from pipeline.config.tracking_uri import VARIABLE, named_tracking_uri
from pipeline.errors import UserError
from pipeline.runs.console import Console
from shards.redaction import redacted

VERBS = ("run", "preprocess", "train", "tune", "demo", "evaluate", "promote", "predict")
CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


@dataclasses.dataclass(frozen=True)
class JobFiles:
    """What a job runs with, besides its configuration.

    Attributes:
        python: The path of the Python on the cluster's machines; None takes that of this process.
        requirements: A file with packages that Ray installs on each machine; None installs none.
        installer: What installs them: `uv` or `pip`.
        working_dir: The folder whose files the job needs; None sends none.
        excludes: Patterns of files and folders of `working_dir` that are not sent.
    """

    python: str | None = None
    requirements: Path | None = None
    installer: str = "uv"
    working_dir: Path | None = None
    excludes: tuple[str, ...] = ()


def submit(
    command: list[str],
    console: Console,
    *,
    parse: Callable[[list[str]], argparse.Namespace],
    address: str,
    wait: bool,
    files: JobFiles,
) -> dict[str, Any]:
    """Submit `python -m pipeline VERB …` to a running cluster, and follow its log.

    The resolved configuration is sent with the job, and what `files` names. Relative paths become
    absolute on this machine, and every machine of the cluster must see these folders. The
    machines must have the Python, unless Ray installs its packages.

    Args:
        command: The verb and its arguments.
        console: The console that shows the log.
        parse: The function that parses a command line of `perceiver`.
        address: The address of the cluster's dashboard, `http://host:port`.
        wait: Whether to follow the log to the end.
        files: What the job runs with.

    Returns:
        `job_id` and `status`.

    Raises:
        UserError: There is no such verb, its configuration is wrong, or a secret would be shown.
            Nothing was sent.
        ClusterError: The files are too large, no cluster answers, or it refuses the job.
    """
    if command[0] not in VERBS:
        raise UserError(f"{command[0]}: not a verb for a job; one of {', '.join(VERBS)}")
    args = parse(command)
    uri = named_tracking_uri(getattr(args, "tracking_uri", None))
    _refuse_secret(uri, "tracking.uri")
    python = _python(files)
    with tempfile.TemporaryDirectory(prefix="perceiver-job-") as folder:
        package = JobPackage(Path(folder) / "job.zip")
        if files.working_dir is not None:
            if not files.working_dir.is_dir():
                raise UserError(f"--working-dir {files.working_dir}: there is no such folder")
            package.add_folder(files.working_dir, files.excludes)
        if "overrides" in args:
            args = _with_resolved_config(args, package)
        words = spelled(args)
        if any(redacted(word) != word for word in words):
            raise UserError(
                f"{args.verb}: an address in the command has a password or a signature, which "
                "Ray's dashboard would show; leave it out, and set the variables with the keys "
                "where the cluster's machines start"
            )
        if files.requirements is not None:
            package.add_own_code()
        package.close()
        return run_job(
            [*_program(files), "-m", "pipeline", *words],
            address=address,
            working_dir=package.path,
            environment={VARIABLE: uri} if uri else {},
            python=python,
            wait=wait,
            follow=console.say,
        )


def _program(files: JobFiles) -> list[str]:
    """Return the Python of the job's entry point, with its options."""
    if files.requirements is not None:
        return ["python"]  # of the environment that Ray installs; our code is beside it
    # -P: the job's working directory may hold a folder with the name of a package.
    return [files.python or sys.executable, "-P"]


def _python(files: JobFiles) -> dict[str, Any]:
    """Return the part of the runtime environment that chooses the Python.

    Raises:
        UserError: Both a Python and requirements are given, or the file of requirements is not one.
    """
    if files.requirements is None:
        return {"py_executable": files.python or sys.executable}
    what = f"--requirements {files.requirements}"
    if files.python is not None:
        raise UserError(f"{what}: Ray makes a Python for them; leave --python out")
    try:
        text = files.requirements.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{what}: it cannot be read: {reason}") from None
    lines = [line.split(" #")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if wrong := [line for line in lines if line.startswith(("-r", "-c", "-e", ".", "/"))]:
        raise UserError(f"{what}: {redacted(wrong[0])!r} names a file of this machine; give names")
    if any(redacted(line) != line for line in lines):
        raise UserError(
            f"{what}: an address has a password or a token, which Ray's dashboard would show; "
            "write ${NAME} for it, the name of a variable of the cluster's machines"
        )
    if not lines:
        raise UserError(f"{what}: it names no package")
    return {files.installer: {"packages": lines}}


def _refuse_secret(address: str | None, what: str) -> None:
    if address is not None and redacted(address) != address:
        raise UserError(
            f"{what} has a password, which Ray's dashboard would show; leave it out, and set "
            f"{CREDENTIALS} where the cluster's machines start"
        )


def _with_resolved_config(args: argparse.Namespace, package: JobPackage) -> argparse.Namespace:
    """Return the same command line with its configuration resolved and added to the package.

    The file keeps its name, because errors begin with it.
    """
    config = load_config(args.config, args.overrides)
    _refuse_secret(config.tracking.uri, "tracking.uri")
    name = f"{Path(args.config).stem}.yaml"
    tree = resolved_tree(config)
    package.add_text(name, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return argparse.Namespace(**{**vars(args), "config": name, "overrides": []})
