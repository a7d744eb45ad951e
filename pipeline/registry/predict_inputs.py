"""What `perceiver predict` reads, in order: files, folders, listings and tars, here or at URLs."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.config.addresses import is_web, local_path
from pipeline.config.folders import folder_at
from pipeline.errors import UserError
from pipeline.media.format import Media, by_modality
from pipeline.media.registered import modality_of
from pipeline.preprocess.sources.addresses import base_of, file_name, filesystem_of, folder_of
from pipeline.preprocess.sources.fields import FIELD_CODES, FieldNames
from pipeline.preprocess.sources.parts import (
    exists,
    is_folder,
    opened_at,
    read_errors,
    redacted_line,
)
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.rows import SUFFIXES, open_listing, suffix_of
from pipeline.preprocess.sources.tar_members import DamagedTarError, tar_members
from pipeline.preprocess.sources.tar_patterns import find_tars
from pipeline.preprocess.sources.tars import is_tars
from pipeline.preprocess.sources.walk import changed, is_local, walk
from pipeline.registry.table_rows import input_columns, table_rows
from pipeline.runs.storage import download
from shards.redaction import redacted, without_secrets


@dataclass(frozen=True)
class Input:
    """One input. It has a path on this machine, an object or a range of a tar, a row, or content.

    Attributes:
        source: Its name in the answers. It holds no secret.
        path: A file of this machine, or with `root` the path below it.
        root: The number of the root of an object or of a tar; None for a file of this machine.
        offset: The first byte in a tar.
        length: The number of bytes in a tar.
        row: The values of a row by column.
        content: The content itself, such as a text in a listing.
        error: Why it cannot be used.
        stamp: A text that changes with the file: its size and time, as far as its storage tells.
    """

    source: str
    path: str | None = None
    root: int | None = None
    offset: int | None = None
    length: int | None = None
    row: Mapping[str, Any] | None = None
    content: bytes | None = None
    error: str | None = None
    stamp: str = ""


@dataclass(frozen=True)
class Inputs:
    """The inputs that a user names, for a model of some media. They are listed when iterated.

    Of a folder, these are the files below it, in the order of their paths' parts; those whose path
    has a part that begins with a dot are left out. Of a listing (.csv, .parquet, .jsonl) they are
    its rows. For a model of files these have a column with the modality's name and paths in it,
    relative to the listing's folder. Of tars they are the members with an extension of the
    modality. What lies in a folder is a file in any case; a model of tables reads rows there, too.

    Attributes:
        given: Paths, URLs and patterns of tars.
        media: The format of the model's media, or the formats by modality.
        roots: Where objects and tars lie, with what gives access to them. They are known once the
            inputs were iterated, and must not be written down.
        below: The folder that relative paths are below: this process's own. Another process lists
            the same inputs, and names them as they were given.
    """

    given: Sequence[str]
    media: Media
    roots: list[str] = field(default_factory=list)
    below: str = field(default_factory=os.getcwd)

    def __iter__(self) -> Iterator[Input]:
        """Yield the inputs in order.

        Raises:
            UserError: An input does not exist, cannot be read, or is no list of such inputs.
        """
        self.roots.clear()
        for given in self.given:
            prefix = f"{_shown(self.below)}/" if _is_relative(given) else ""
            try:
                filesystem, base = filesystem_of(given)
            except (ImportError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{redacted(given)}: cannot be opened: {reason}") from None
            try:
                address = str(Path(self.below, given)) if prefix else given
                for each in self._of(address, filesystem, base):
                    name = each.source.removeprefix(prefix)
                    yield each if name == each.source else replace(each, source=name)
            except UserError:
                raise
            except read_errors(filesystem) as error:
                raise UserError(
                    f"{redacted(given)}: cannot be read: {redacted_line(error)}"
                ) from None

    @property
    def _source(self) -> str:
        """What one input is: `file`, `text` or `row`; `several` for several modalities."""
        formats = by_modality(self.media)
        if len(formats) > 1:
            return "several"
        return modality_of(next(iter(formats.values()))).source

    def _of(self, given: str, filesystem: Any, base: str) -> Iterator[Input]:
        if is_tars(given):
            yield from self._in_tars(given)
        elif is_local(filesystem):
            path = Path(local_path(given) or given).expanduser()
            if path.is_dir():
                for file, stamp in _below(path):
                    yield from self._file(file, stamp)
            elif not path.exists():
                raise UserError(f"{given}: no such file or folder")
            elif suffix_of(given) is not None:
                yield from self._in_listing(given)
            else:
                yield from self._file(path, _stamp(path))
        elif suffix_of(given) is not None:
            yield from self._in_listing(given)
        else:
            yield from self._far(given, filesystem, base)

    def _file(self, path: Path, stamp: str) -> Iterator[Input]:
        """Yield a file, or the rows of one in a folder."""
        rows = self._source in ("row", "several")
        if rows and path.suffix.lower() in SUFFIXES:
            yield from self._rows(path, str(path))
        elif self._source == "several":
            columns = ", ".join(column.name for column in input_columns(self.media))
            reason = f"no .csv, .parquet or .jsonl file with the columns {columns}"
            yield Input(_shown(path), error=reason)
        else:
            yield Input(_shown(path), path=str(path), stamp=stamp)

    def _rows(self, path: Path, name: str) -> Iterator[Input]:
        for source, row in table_rows(path, self.media):
            source = source.replace(str(path), redacted(name), 1)
            if isinstance(row, str):
                yield Input(source, error=row)
            else:
                yield Input(source, row=row)

    def _in_listing(self, given: str) -> Iterator[Input]:
        if self._source in ("row", "several"):
            with _here(given) as path:
                yield from self._rows(path, given)
            return
        listing = open_listing(given, "input", input_columns(self.media))
        (column,) = listing.columns
        root, far = folder_of(given), local_path(given) is None
        number = self._root(root)
        for batch in listing.batches():
            for line, reason in batch.unread:
                yield Input(f"{redacted(given)}:line {line}", error=reason)
            (values,) = batch.arrays
            for index, value in enumerate(values.to_pylist()):
                name = f"{redacted(given)}:row {batch.start + index + 1}"
                if index in batch.reasons:
                    yield Input(name, error=batch.reasons[index])
                elif batch.wrong[0][index]:
                    yield Input(name, error=f"column {column.name!r} holds no value of its type")
                elif value is None:
                    yield Input(name, error=f"column {column.name!r} is empty")
                elif column.role != "path":
                    yield Input(name, content=value)
                else:
                    yield _named_in(os.fsdecode(value), Path(root), number, far=far)

    def _in_tars(self, given: str) -> Iterator[Input]:
        if self._source in ("row", "several"):
            raise UserError(
                f"{redacted(given)}: a model of rows reads .csv, .parquet and .jsonl files, no tars"
            )
        root, tars = find_tars(given, "input")
        number, (modality,) = self._root(root), by_modality(self.media)
        names = FieldNames((modality,), None)
        for tar in tars:
            yield from _members(root, number, tar, names, FIELD_CODES[modality])

    def _far(self, given: str, filesystem: Any, base: str) -> Iterator[Input]:
        """Yield an object, or those below a prefix."""
        if is_web(given) and not base_of(given).endswith("/"):
            yield self._object(given)
        elif not exists(filesystem, base):
            raise UserError(f"{redacted(given)}: no such file or folder")
        elif not is_folder(filesystem, base):
            info = filesystem.info(base)
            yield self._object(given, f"{info.get('size')}:{changed(info)}")
        else:
            number = self._root(given)
            prefix = redacted(given).rstrip("/")
            for path, stamp, reason in _far_below(filesystem, base, b""):
                source = f"{prefix}/{path}"
                if self._source in ("row", "several"):
                    yield from self._far_rows(f"{given.rstrip('/')}/{path}", source, number, path)
                else:
                    yield Input(source, path=path, root=number, stamp=stamp, error=reason)

    def _far_rows(self, address: str, source: str, number: int, path: str) -> Iterator[Input]:
        if suffix_of(address) is not None:
            yield from self._in_listing(address)
        elif self._source == "row":
            yield Input(source, path=path, root=number)
        else:
            yield from self._file(Path(source), "")

    def _object(self, given: str, stamp: str = "") -> Input:
        number = self._root(given)
        if self._source == "several":
            return next(self._file(Path(file_name(given)), ""))
        if is_web(given):
            return Input(redacted(given), path=without_secrets(given), root=number, stamp=stamp)
        self.roots[number] = folder_of(given)
        return Input(redacted(given), path=file_name(given), root=number, stamp=stamp)

    def _root(self, address: str) -> int:
        self.roots.append(address)
        return len(self.roots) - 1


def at_most(inputs: Inputs, most: int) -> list[Input] | None:
    """Return the inputs if there are at most so many, and else None, without listing the rest."""
    found = list(islice(inputs, most + 1))
    return found if len(found) <= most else None


def are_more(inputs: Inputs, most: int) -> bool:
    """Return whether there are more inputs than so many, without holding them."""
    return any(number >= most for number, _ in enumerate(inputs))


def _is_relative(given: str) -> bool:
    """Return whether an input is a path below the working directory."""
    return "://" not in given and not given.startswith("~") and not Path(given).is_absolute()


def _named_in(value: str, folder: Path, number: int, *, far: bool) -> Input:
    """Return the input that a row of a listing names."""
    if "://" in value:
        shown = without_secrets(value)
        if shown != value:
            reason = "its address holds a password or a signature; give it with the listing's own"
            return Input(redacted(shown), error=reason)
        return Input(value, path=value, root=number)
    if far:
        return Input(value, path=value, root=number)
    path = folder / value
    return Input(_shown(value), path=str(path), stamp=_stamp(path))


def _members(root: str, number: int, tar: str, names: FieldNames, wanted: int) -> Iterator[Input]:
    """Yield the members of a tar that are of the modality, and what is wrong with it."""
    filesystem, full = Reach(root, confined=False).resolve(tar)
    source = redacted(f"{root.rstrip('/')}/{tar}")
    info = filesystem.info(full)
    stamp = f"{info.get('size')}:{changed(info)}"
    with opened_at(filesystem, full) as file:
        try:
            for member in tar_members(file, int(info["size"])):
                name = member.name.decode("utf-8", "backslashreplace")
                base = member.name.rpartition(b"/")[2]
                stem, dot, extensions = base.partition(b".")
                if not stem or not dot:
                    continue
                if member.reason is not None:
                    yield Input(f"{source}/{name}", error=member.reason)
                elif names.of(extensions)[0] == wanted:
                    yield Input(
                        f"{source}/{name}",
                        path=tar,
                        root=number,
                        offset=member.offset,
                        length=member.length,
                        stamp=stamp,
                    )
        except DamagedTarError as error:
            yield Input(source, error=f"damaged: {error}; what lies before is used")


def _below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder with their stamps, in the order of their paths' parts.

    The names of one folder are in memory at a time, and those of the folders around it.
    """
    with os.scandir(folder) as found:
        entries = sorted((each for each in found if not each.name.startswith(".")), key=_name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _below(folder / entry.name)
        elif entry.is_file():
            yield folder / entry.name, _stamp(folder / entry.name)


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _far_below(filesystem: Any, base: str, folder: bytes) -> Iterator[tuple[str, str, str | None]]:
    """Yield the path, stamp and fault of the objects below a prefix, as `_below` orders files."""
    folders = [folder]
    files = {each.path: each for each in walk(filesystem, base, folders, deep=False)}
    for path in sorted([*files, *folders], key=lambda each: each.split(b"/")):
        if (file := files.get(path)) is None:
            yield from _far_below(filesystem, base, path)
        else:
            yield os.fsdecode(path), f"{file.size}:{file.mtime}", file.reason


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except (OSError, ValueError):  # a row of a listing may name anything
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}"


def _shown(path: str | Path) -> str:
    # A name that is not UTF-8 could not be written to a table.
    return str(path).encode("utf-8", "backslashreplace").decode()


@contextmanager
def _here(given: str) -> Iterator[Path]:
    """Yield a listing as a file of this machine."""
    if (path := local_path(given)) is not None:
        yield Path(path).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="perceiver-predict-") as folder:
        copy = Path(folder) / file_name(given)
        try:
            download(folder_at(given), copy)
        except FileNotFoundError:
            raise UserError(f"{redacted(given)}: no such file") from None
        yield copy
