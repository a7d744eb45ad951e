"""Where a shard set lies: a local folder, or a folder behind any fsspec URL."""

from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Location:
    """Reads the files of one folder by their paths within it.

    Attributes:
        folder: the folder where it is local, else None.
    """

    def __init__(self, path: str | Path) -> None:
        self._given = str(path)
        self._fs, root = fsspec.core.url_to_fs(self._given)
        self._root: str = root.rstrip("/")
        self.folder = Path(root) if isinstance(self._fs, LocalFileSystem) else None

    def __str__(self) -> str:
        return self._given

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder `name`; without a name, the folder itself."""
        return bool(self._fs.exists(self._path(name)))

    def read(self, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError."""
        return self._fs.cat_file(self._path(name))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, fewer where it ends before. Raises FileNotFoundError."""
        return self._fs.cat_file(self._path(name), start=start, end=stop)

    def open(self, name: str) -> BinaryIO:
        """A file to be read in order. Raises FileNotFoundError."""
        return self._fs.open(self._path(name), "rb")

    def names(self) -> set[str]:
        """The paths of all files in the folder and below."""
        return {path[len(self._root) + 1 :] for path in self._fs.find(self._root)}

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")
