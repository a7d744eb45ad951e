"""Writes the files of one target into a folder, or prints one of them."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.config.tree import Config
from pipeline.deploy.dockerfile import render_dockerfile
from pipeline.deploy.kuberay import render_kuberay
from pipeline.deploy.launcher import render_aws, render_gcp
from pipeline.deploy.machines import Machines, machines_of
from pipeline.deploy.scripts import render_local, render_slurm
from pipeline.errors import UserError

DOCKERFILE = "Dockerfile"
TARGETS: dict[str, Callable[[Machines], dict[str, str]]] = {
    "kuberay": render_kuberay,
    "slurm": render_slurm,
    "aws": render_aws,
    "gcp": render_gcp,
    "local": render_local,
}
WITH_IMAGE = ("kuberay", "aws", "gcp")
"""The targets that run an image."""


def render(target: str, config: Config, verb: str, *, only: str | None = None) -> dict[str, str]:
    """Return the files of a target, the most important one first.

    Args:
        target: A name of `TARGETS`.
        config: The configuration.
        verb: The verb of the job: preprocess, train or tune.
        only: The name of the only file that is wanted; None returns all.

    Raises:
        UserError: The configuration asks for what the target cannot do, or the target has no file
            of that name.
    """
    files = TARGETS[target](machines_of(config, verb))
    names = [*files, *([DOCKERFILE] if target in WITH_IMAGE else [])]
    if only is not None and only not in names:
        raise UserError(f"--only={only}: {target} has {', '.join(names)}")
    if DOCKERFILE in names and only in (None, DOCKERFILE):
        files[DOCKERFILE] = render_dockerfile(config, target)
    return files if only is None else {only: files[only]}


def write_files(files: dict[str, str], folder: Path) -> None:
    """Write files into a folder, each at once and only if all can be written.

    Existing files of the same names are replaced.

    Raises:
        UserError: The folder cannot be written to. No file has changed.
    """
    written: dict[Path, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=folder, prefix=f".{name}-", delete=False
            ) as file:
                written[folder / name] = file.name
                file.write(text)
            os.chmod(file.name, 0o755 if text.startswith("#!") else 0o644)  # noqa: PTH101 - a name
        for path, temporary in written.items():
            os.replace(temporary, path)  # noqa: PTH105 - a name
    except OSError as error:
        for temporary in written.values():
            Path(temporary).unlink(missing_ok=True)
        raise UserError(f"--to={folder}: it cannot be written: {error.strerror}") from None
