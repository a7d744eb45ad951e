"""Which code Ray's workers import: this installation's, whatever a working directory holds.

Ray puts the driver's working directory before everything else on its workers' import path, and the
names of these packages are everyday words: a `pipeline.py` or a folder `shards` there would be
imported in their place.
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
    """The folder that holds these packages."""
    return Path(__file__).resolve().parents[1]


def root_to_add() -> Path | None:
    """The folder that an interpreter must be told of to import these packages.

    Returns:
        The root of a checkout; None where the packages lie among the installed ones.
    """
    root = install_root()
    known = [*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib")]
    return None if root in (Path(folder).resolve() for folder in known) else root


def hidden_by(folder: Path) -> list[str]:
    """The packages that would be imported from `folder` if it came first on the import path."""
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
    """Refuse a folder that would come first on the workers' import path and hide a package.

    Raises:
        ClusterError: names what lies there, and `where` it is as the user knows it.
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
    """While this process connects to a cluster, it works where nothing hides a package.

    That is the root of a checkout, so that the workers import it, or else an empty folder.
    """
    root = root_to_add()
    with contextlib.ExitStack() as stack:
        folder = root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(contextlib.chdir(folder))
        yield
