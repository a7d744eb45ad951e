"""WebDataset tars: the members of one key make a sample, read later as ranges of the tar."""

import os
import re
from collections.abc import Generator, Iterator
from typing import IO, Any

import pyarrow as pa

from pipeline.config.data import DataConfig
from pipeline.errors import UserError
from pipeline.media.errors import MediaError
from pipeline.media.targets import MAX_JSON_BYTES, json_label
from pipeline.preprocess.sources.addresses import base_of
from pipeline.preprocess.sources.fields import (
    CLASS_LABEL,
    JSON_LABEL,
    OTHER,
    FieldNames,
    target_field,
)
from pipeline.preprocess.sources.grouping import MEMBER_SCHEMA, SampleRequirement
from pipeline.preprocess.sources.parts import opened_at, read_errors, redacted_line, retry_if_exists
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.scan import SourceScan
from pipeline.preprocess.sources.stored_tables import StoredTable, TableStore
from pipeline.preprocess.sources.tables import (
    REFUSED_SCHEMA,
    Rows,
    concat,
)
from pipeline.preprocess.sources.tar_members import (
    MAX_NAME_BYTES,
    DamagedTarError,
    Member,
    tar_members,
)
from pipeline.preprocess.sources.tar_patterns import find_tars
from pipeline.preprocess.sources.typed import read_value
from pipeline.preprocess.sources.walk import changed, is_local

_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$")
MAX_CLASS_BYTES = 1000
TARS_AT_ONCE = 8
"""A step reads so many tars."""


def find_in_tars(data: DataConfig, pattern: str, field: str, store: TableStore) -> SourceScan:
    """Find the samples of tars by WebDataset's rules.

    A key is a member's path up to the first dot of its file name. The rest of the name says the
    field. The class comes from `.cls`, or else from the key `label` of `.json`
    (`data.target.column` names another key). Other members are ignored.

    Args:
        data: The modalities, the target, and what may be missing.
        pattern: A tar, a glob or brace range of tars, or their folder; a path or URL.
        field: The field of the configuration, for errors.
        store: Runs the reading of the tars.

    Raises:
        UserError: There is no tar, one is missing or compressed, or no sample is in them.
    """
    target = target_field(data.target.kind)
    if _COMPRESSED.search(base_of(pattern)):
        raise UserError(
            f"{field}={pattern}: is compressed, and samples are read as ranges of a tar; unpack it "
            "to .tar first"
        )
    root, tars = find_tars(pattern, field)
    label_key = data.target.key if data.target.kind == "class" else None
    tables: list[StoredTable] = []
    refused: list[pa.Table] = []
    calls = (
        (root, tars[start : start + TARS_AT_ONCE], tuple(data.formats), target, label_key)
        for start in range(0, len(tars), TARS_AT_ONCE)
    )
    try:
        for made, more in store.run(_read_tars, calls):
            tables.extend(made)
            refused.append(more)
    except UnreadableTarError as error:
        raise UserError(f"{field}={pattern}: {error}") from error.__cause__
    return SourceScan(
        tables,
        concat(refused, REFUSED_SCHEMA),
        root,
        SampleRequirement(tuple(data.formats), data.allow_missing, target),
        nothing=f"{field}={pattern}: no sample is in its tars",
        confined=False,
    )


def _read_tars(
    root: str, tars: list[str], modalities: tuple[str, ...], target: str | None, key: str | None
) -> Generator[pa.Table, None, pa.Table]:
    """Read the headers of some tars, as a step. Yield members, and return what is refused."""
    names = FieldNames(modalities, target)
    members, refused = Rows(MEMBER_SCHEMA), Rows(REFUSED_SCHEMA)
    for path in tars:
        filesystem, full = Reach(root, confined=False).resolve(path)
        for _ in _read_tar(filesystem, full, path, names, key, members, refused):
            yield from members.full()
    yield from members.rest()
    return concat(list(refused.rest()), REFUSED_SCHEMA)


def is_tars(source: str) -> bool:
    """Return whether a path names tars by its ending."""
    name = base_of(source)
    return name.endswith((".tar", ".tar}")) or _COMPRESSED.search(name) is not None


def _read_tar(
    filesystem: Any,
    full: str,
    path: str,
    names: FieldNames,
    label_key: str | None,
    members: Rows,
    refused: Rows,
) -> Iterator[None]:
    """Add the members of one tar, and yield after each.

    What is damaged or unusable is refused, and the rest is used.
    """
    tar = os.fsencode(path)
    try:
        info = retry_if_exists(filesystem, full, lambda: filesystem.info(full))
        if info["type"] != "file":
            refused.append(tar, None, "a folder or a device, not a file")
            return
        with opened_at(filesystem, full) as file:
            if info["size"] is None:
                raise OSError("the server does not tell its size")
            for member in tar_members(file, int(info["size"])):
                _add(file, member, tar, changed(info), names, label_key, members, refused)
                yield
    except MediaError as error:
        refused.append(tar, None, str(error))
    except DamagedTarError as error:
        refused.append(tar, None, f"damaged: {error}; what lies before is used")
    except read_errors(filesystem) as error:
        if not is_local(filesystem):  # a network that fails today may work tomorrow
            raise UnreadableTarError(
                f"{path}: cannot be read ({redacted_line(error)}); samples are read as ranges of "
                "their tar, which the server must give"
            ) from error
        code = error.errno if isinstance(error, OSError) else None
        reason = f"cannot be read: {os.strerror(code)}" if code else redacted_line(error)
        refused.append(tar, None, reason)


class UnreadableTarError(Exception):
    """A tar could not be read over the network. Its samples must not be counted as missing."""


def _add(
    file: IO[bytes],
    member: Member,
    tar: bytes,
    mtime: str,
    names: FieldNames,
    label_key: str | None,
    members: Rows,
    refused: Rows,
) -> None:
    folder, slash, base = member.name.rpartition(b"/")
    stem, dot, extensions = base.partition(b".")
    if not dot or not stem or (stem.startswith(b"__") and stem.endswith(b"__")):
        return  # WebDataset skips these too: hidden, without an extension, or about the tar itself
    uri = tar + b"/" + member.name[:MAX_NAME_BYTES]
    if member.reason is not None:
        refused.append(uri, None, member.reason)
        return
    code, label = names.of(extensions)[0], None
    if label_key is not None:
        try:
            code, label = _label(file, member, extensions, code, label_key)
        except ValueError as error:
            refused.append(uri, None, str(error))
            return
    key = tar + b"/" + folder + slash + stem
    length = member.length
    members.append(key, code, label, tar, member.offset, length, length, mtime)


def _label(
    file: IO[bytes], member: Member, extensions: bytes, code: int, key: str
) -> tuple[int, bytes | None]:
    """Return the field and label of a member that may hold a class."""
    kind = extensions.lower()
    if kind == b"cls":
        file.seek(member.offset)
        data = file.read(min(member.length, MAX_CLASS_BYTES + 1)).strip()
        if not data or len(data) > MAX_CLASS_BYTES:
            raise ValueError(f"holds {member.length} bytes, and no class")
        return CLASS_LABEL, read_value(data, "label", "")
    if kind == b"json":
        file.seek(member.offset)
        try:
            value = json_label(file.read(min(member.length, MAX_JSON_BYTES + 1)), key)
        except ValueError:
            return code, None  # the file may be about something else
        if not isinstance(value, list | dict) and (text := read_value(value, "label", "")):
            return (JSON_LABEL if code == OTHER else code), text
    return code, None
