"""The files that `perceiver predict` reads, on this machine or in object storage."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upath import UPath

from pipeline.config.folders import Folder, folder_at
from pipeline.errors import UserError
from pipeline.runs.storage import download, files_below
from shards.redaction import redacted


@dataclass(frozen=True)
class LocalFiles:
    """Files of this machine, some of them copies of objects.

    Attributes:
        paths: The files.
        addresses: The address of each copy's object, by the path of the copy.
    """

    paths: list[Path]
    addresses: dict[str, str]

    def named(self, prediction: Any) -> Any:
        """Return a prediction that names the object instead of its copy."""
        for copy, address in self.addresses.items():
            if prediction.source.startswith(copy):
                error = prediction.error and prediction.error.replace(copy, address)
                source = prediction.source.replace(copy, address, 1)
                return replace(prediction, source=source, error=error)
        return prediction


def list_inputs(inputs: Sequence[str]) -> list[Folder]:
    """Return the given files, and the files in the given folders, sorted.

    Files whose path in a folder has a part that begins with a dot are left out.

    Raises:
        UserError: An input does not exist, there are no files, or a storage cannot be read.
    """
    files: list[Folder] = []
    for given in inputs:
        path = folder_at(given)
        if isinstance(path, Path):
            files += _below(path.expanduser(), given)
        elif not (found := files_below(path)):
            raise UserError(f"{redacted(given)}: no such file or folder")
        else:
            files += found
    if not files:
        raise UserError(f"{', '.join(map(redacted, inputs))}: no files there")
    return files


def _below(path: Path, given: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{given}: no such file or folder")
    return sorted(
        inner
        for inner in path.rglob("*")
        if inner.is_file()
        and not any(part.startswith(".") for part in inner.relative_to(path).parts)
    )


@contextlib.contextmanager
def local_files(files: Sequence[Folder]) -> Iterator[LocalFiles]:
    """Yield the files, with temporary copies in place of objects.

    Raises:
        UserError: An object cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="perceiver-predict-") as folder:
        paths: list[Path] = []
        addresses: dict[str, str] = {}
        for number, file in enumerate(files):
            if not isinstance(file, UPath):
                paths.append(Path(file))
                continue
            copy = Path(folder) / str(number) / file.name
            copy.parent.mkdir()
            try:
                download(file, copy)
            except FileNotFoundError:
                raise UserError(f"{redacted(str(file))}: no such file") from None
            paths.append(copy)
            addresses[str(copy)] = redacted(str(file))
        yield LocalFiles(paths, addresses)
