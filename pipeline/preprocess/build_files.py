"""The files that tell workers what to do: the plan, and the sources to drop.

Beside a set in a folder, workers read them where they were written. For a set in object storage
they are written to a temporary folder, and copied to the set's folder for builds.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.folders import Folder
from pipeline.preprocess.sources import plan_files
from pipeline.runs.storage import remove, upload
from shards.object_staging import BUILDING


@dataclass(frozen=True)
class BuildFile:
    """A file for workers.

    Attributes:
        path: The path that it is written to.
        address: The path or URL that workers read it at.
    """

    path: Path
    address: Folder

    def send(self) -> None:
        """Make what was written, and the files beside it, readable for workers."""
        if self.address == self.path:
            return
        for file in plan_files(self.path):
            upload(file, self.address.with_name(file.name))


@contextlib.contextmanager
def build_files(final: Folder, fingerprint: str) -> Iterator[tuple[BuildFile, BuildFile]]:
    """Yield the files of the plan and of the stale sources. They are removed at the end.

    Args:
        final: The folder of the set.
        fingerprint: The name of the build.
    """
    if isinstance(final, Path):
        plan, stale = (final.with_name(f"{final.name}.{name}") for name in _NAMES)
        try:
            yield BuildFile(plan, plan), BuildFile(stale, stale)
        finally:
            remove_build_files(final)
        return
    with tempfile.TemporaryDirectory(prefix="perceiver-plan-") as folder:
        made = [
            BuildFile(Path(folder) / name, final / BUILDING / fingerprint[:32] / name)
            for name in _NAMES
        ]
        yield made[0], made[1]


def remove_build_files(final: Folder) -> None:
    """Remove the files that a killed build left beside a set in a folder."""
    if isinstance(final, Path):
        for name in _NAMES:
            for file in plan_files(final.with_name(f"{final.name}.{name}")):
                remove(file)


_NAMES = ("plan.parquet", "stale.parquet")
