"""The lines of a study's journal, in a file or in object storage.

A local journal is one file, `reports.jsonl`, and each line is appended to it. Object storage cannot
append. There, the journal is a row of objects with at most `LINES_PER_OBJECT` lines each:

    reports/00000.jsonl, reports/00001.jsonl, …

A new line replaces the last object, on the condition that its content is still what this process
wrote or read. So two studies never write into the same journal: the second one stops.
"""

import os
from pathlib import Path
from typing import Protocol

from upath import UPath

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.runs.storage import exists, names, read_bytes
from shards.errors import ShardError
from shards.object_store import ObjectStore

JOURNAL_FILE, JOURNAL_OBJECTS = "reports.jsonl", "reports"
LINES_PER_OBJECT = 256
_SUFFIX = ".jsonl"
_MAX_BYTES = 64 << 20


class JournalLines(Protocol):
    """Where the lines of a journal lie."""

    def read(self) -> list[bytes]:
        """Return all lines, each with its line end. The last one may lack it.

        An empty journal is made if there is none.

        Raises:
            UserError: The storage cannot be read, or an object is missing.
        """

    def drop_last(self, line: bytes) -> bool:
        """Remove a damaged last line, if a kill can have left it. Return whether it was removed."""

    def append(self, line: bytes) -> None:
        """Add a line. When this returns, the line is stored.

        Raises:
            UserError: The line cannot be stored. No part of it is.
        """


def journal_lines(folder: Folder) -> JournalLines:
    """Return where the lines of the journal in a study's folder lie."""
    return FileLines(folder / JOURNAL_FILE) if isinstance(folder, Path) else ObjectLines(folder)


def has_journal(folder: Folder) -> bool:
    """Return whether a study's folder has a journal."""
    if isinstance(folder, Path):
        return (folder / JOURNAL_FILE).is_file()
    return exists(folder / JOURNAL_OBJECTS / _name(0))


class FileLines:
    """The lines of a local file.

    Args:
        path: The path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def read(self) -> list[bytes]:
        """Return all lines. See `JournalLines`."""
        try:
            return self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            self._path.touch()
            return []

    def drop_last(self, line: bytes) -> bool:
        """Cut the last line off, which a kill can have left unfinished."""
        os.truncate(self._path, self._path.stat().st_size - len(line))
        return True

    def append(self, line: bytes) -> None:
        """Add a line. See `JournalLines`."""
        try:
            with self._path.open("ab", buffering=0) as file:
                end = file.tell()
                if file.write(line) != len(line):
                    file.truncate(end)
                    raise OSError("no space left")
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error})") from None


class ObjectLines:
    """The lines of a row of objects.

    Args:
        folder: The folder of the study.
    """

    def __init__(self, folder: UPath) -> None:
        self._folder = folder / JOURNAL_OBJECTS
        self._store = ObjectStore(str(self._folder))
        self._number = 0
        self._last: bytes | None = None  # the content of the last object

    def __str__(self) -> str:
        return str(self._folder)

    def read(self) -> list[bytes]:
        """Return all lines. See `JournalLines`."""
        found = names(self._folder, _SUFFIX)
        if found != [_name(number) for number in range(len(found))]:
            raise UserError(
                f"{self}: an object of the journal is missing; the study cannot go on from it: "
                "run again with --fresh"
            )
        if not found:
            self._exchange(b"")
            return []
        objects = [read_bytes(self._folder / name, _MAX_BYTES) for name in found]
        self._number, self._last = len(found) - 1, objects[-1]
        return b"".join(objects).splitlines(keepends=True)

    def drop_last(self, line: bytes) -> bool:
        """Keep the line: an object is written whole, so no kill has left it."""
        return False

    def append(self, line: bytes) -> None:
        """Add a line. See `JournalLines`."""
        before = self._last or b""
        if before.count(b"\n") >= LINES_PER_OBJECT:
            self._number, self._last, before = self._number + 1, None, b""
        self._exchange(before + line)

    def _exchange(self, data: bytes) -> None:
        """Replace the last object.

        Raises:
            UserError: Another process has changed it, or the storage cannot be written.
        """
        try:
            is_ours = self._store.exchange(_name(self._number), self._last, data)
        except ShardError as error:
            raise UserError(str(error)) from None
        if not is_ours:
            raise UserError(
                f"{self}: another command has written to this study; wait until it has ended, then "
                "run the same command again"
            )
        self._last = data


def _name(number: int) -> str:
    return f"{number:05d}{_SUFFIX}"
