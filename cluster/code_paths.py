"""Make Ray's workers import this installation's code, whatever their working directory contains.

Ray puts the driver's working directory first on its workers' import path. The names of these
packages are common words: Ray's workers would import a `pipeline.py` or a folder `shards` in that
directory instead.
"""

import contextlib
import site
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import ClusterError

PACKAGES = ("cluster", "perceiver_model", "pipeline", "shards")


def install_root() -> Path:
    """Return the folder that contains these packages."""
    return Path(__file__).resolve().parents[1]


def root_to_add() -> Path | None:
    """Return the folder that an interpreter needs on its path to import these packages.

    Returns:
        The root of a checkout, or None if the packages are installed.
    """
    root = install_root()
    known = [*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib")]
    return None if root in (Path(folder).resolve() for folder in known) else root


def hidden_by(folder: Path) -> list[str]:
    """Return the packages that would be imported from `folder` if it were first on the path."""
    if folder.resolve() == install_root():
        return []
    return [
        name
        for name in PACKAGES
        if (folder / name).is_dir()
        or any(folder.glob(f"{name}.py"))
        or any(folder.glob(f"{name}.*.so"))
    ]


def refuse_hidden(folder: Path, where: str) -> None:
    """Reject a folder that hides a package when it comes first on the workers' import path.

    Args:
        folder: The folder to check.
        where: What the user calls this folder, for the error.

    Raises:
        ClusterError: The folder hides a package; the message names it.
    """
    if hidden := hidden_by(folder):
        names = " and ".join(repr(name) for name in hidden)
        raise ClusterError(
            f"{where} holds {names}, which Ray's workers would import in place of the package of "
            "that name; rename it, or submit from another folder with 'perceiver submit', which "
            "uploads no working directory"
        )


@contextlib.contextmanager
def working_directory_for_workers() -> Iterator[None]:
    """Work in a folder that hides no package while this process connects to a cluster.

    The folder is the root of a checkout, so that workers import it, or else an empty folder.
    """
    root = root_to_add()
    with contextlib.ExitStack() as stack:
        folder = root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(contextlib.chdir(folder))
        yield
