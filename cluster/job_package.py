"""The one archive that a job is sent: a configuration, files of a folder, and perhaps our code."""

import fnmatch
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.code_paths import PACKAGES, install_root
from cluster.errors import ClusterError

ALWAYS_EXCLUDED = (
    ".git", ".venv", "venv", "__pycache__", "*.pyc", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    "node_modules", ".DS_Store",
)  # fmt: skip
"""Patterns of files and folders that no job needs."""
_NAMED = 3


class JobPackage:
    """A zip archive that becomes the job's working directory.

    Attributes:
        path: The path of the archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sizes: dict[str, int] = {}
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)

    def add_text(self, name: str, text: str) -> None:
        """Add one file with a text."""
        self._archive.writestr(name, text)
        self._sizes[name] = self._archive.getinfo(name).compress_size

    def add_folder(self, folder: Path, excludes: Sequence[str], within: str = "") -> None:
        """Add the files of a folder.

        Args:
            folder: The folder.
            excludes: Patterns of the shell. A file or folder is left out if one matches its name or
                its path in the folder. `ALWAYS_EXCLUDED` count as well.
            within: The folder in the archive.

        Raises:
            ClusterError: A file cannot be read, or would be imported in place of one of our
                packages.
        """
        for path, relative in _files(folder, (*ALWAYS_EXCLUDED, *excludes)):
            name = f"{within}/{relative}" if within else relative
            first = relative.split("/")[0]
            if not within and first.split(".")[0] in PACKAGES:
                raise ClusterError(
                    f"--working-dir {folder}: it holds {first!r}, the name of one of our packages, "
                    f"which the job would import instead; rename it, or give --exclude {first}"
                )
            try:
                self._archive.write(path, name)
            except (OSError, ValueError) as error:  # ValueError: a time before 1980
                reason = error.strerror if isinstance(error, OSError) else error
                raise ClusterError(f"{path}: it cannot be sent with the job: {reason}") from None
            top = name.split("/")[0] + ("/" if "/" in name else "")
            size = self._archive.getinfo(name).compress_size
            self._sizes[top] = self._sizes.get(top, 0) + size

    def add_own_code(self) -> None:
        """Add the packages of this installation, for machines that do not have them."""
        for name in PACKAGES:
            self.add_folder(install_root() / name, (), within=name)

    def close(self) -> int:
        """Finish the archive and return its size in bytes.

        Raises:
            ClusterError: It is larger than Ray accepts. The largest folders are named.
        """
        from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE as LIMIT

        self._archive.close()
        size = self.path.stat().st_size
        if size >= LIMIT:
            largest = sorted(self._sizes, key=lambda name: self._sizes[name], reverse=True)
            parts = ", ".join(f"{name} {in_mib(self._sizes[name])}" for name in largest[:_NAMED])
            raise ClusterError(
                f"--working-dir: the job's files are {in_mib(size)}, and Ray takes less than "
                f"{in_mib(LIMIT)}; the largest are {parts}; leave out what the job does not need "
                f"with --exclude {largest[0].rstrip('/')}"
            )
        return size


def in_mib(size: int) -> str:
    """Return a size in words, such as `12.3 MiB`."""
    return f"{size / 1024**2:.1f} MiB" if size >= 1024**2 / 10 else f"{size / 1024:.1f} KiB"


def _files(folder: Path, excludes: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder, each with its path in it; links to folders are not followed.

    Raises:
        ClusterError: A folder cannot be listed.
    """

    def failed(error: OSError) -> None:
        raise ClusterError(f"{error.filename}: it cannot be listed: {error.strerror}") from None

    for parent, folders, names in os.walk(folder, onerror=failed):
        within = Path(parent).relative_to(folder)
        folders[:] = sorted(f for f in folders if not _is_excluded(within / f, excludes))
        for name in sorted(names):
            if not _is_excluded(within / name, excludes) and (Path(parent) / name).is_file():
                yield Path(parent) / name, (within / name).as_posix()


def _is_excluded(path: Path, excludes: Sequence[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(text, pattern.rstrip("/"))
        for pattern in excludes
        for text in (path.name, path.as_posix())
    )
