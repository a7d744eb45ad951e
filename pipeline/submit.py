"""``perceiver submit``: a verb as a Ray job."""

from pathlib import Path
from typing import Any

from cluster.jobs import run_job
from pipeline.console import Console
from pipeline.errors import UserError
from pipeline.load_config import load_config
from pipeline.settings import source_places

VERBS = ("preprocess", "train", "tune", "demo", "promote", "predict")
TAKE_A_CONFIG = ("preprocess", "train", "tune")


def submit(
    command: list[str], console: Console, *, address: str, working_dir: Path, wait: bool
) -> dict[str, Any]:
    """Submit ``python -m pipeline VERB …`` to a running cluster and follow its log.

    Relative paths of the configuration are made absolute on this machine, since a job runs in a
    temporary copy of the working directory; every machine of the cluster must see these folders.

    Returns:
        ``job_id`` and ``status``.

    Raises:
        UserError: no such verb, or its configuration is wrong; found before anything is sent.
        ClusterError: no cluster answers.
    """
    verb, *arguments = command
    if verb not in VERBS:
        raise UserError(f"{verb}: not a verb for a job; one of {', '.join(VERBS)}")
    if verb in TAKE_A_CONFIG:
        arguments = _with_absolute_paths(verb, arguments)
    return run_job(
        ["-m", "pipeline", verb, *arguments],
        address=address,
        working_dir=working_dir,
        wait=wait,
        follow=console.say,
    )


def _with_absolute_paths(verb: str, arguments: list[str]) -> list[str]:
    plain = [argument for argument in arguments if not argument.startswith("--")]
    if not plain:
        raise UserError(f"submit -- {verb}: which configuration? give a file or a shipped name")
    config = load_config(plain[0], plain[1:])
    paths = {"output": config.output, "shards": config.shards}
    paths |= {f"data.{split}": place for split, place in source_places(config.data).items()}
    return [*arguments, *(f"{field}={path}" for field, path in paths.items() if path)]
