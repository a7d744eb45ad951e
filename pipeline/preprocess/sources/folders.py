"""Folders: each file is a sample, or the files of one name are one together."""

from collections.abc import Generator
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.config.addresses import is_web
from pipeline.config.data import DataConfig
from pipeline.errors import UserError
from pipeline.preprocess.sources.addresses import filesystem_of
from pipeline.preprocess.sources.fields import FIELD_CODES, FieldNames, target_field
from pipeline.preprocess.sources.grouping import (
    SampleRequirement,
    as_members,
    parts_of,
)
from pipeline.preprocess.sources.parts import exists, is_folder
from pipeline.preprocess.sources.scan import SourceScan
from pipeline.preprocess.sources.stored_tables import StoredTable, TableStore
from pipeline.preprocess.sources.tables import (
    FOUND_SCHEMA,
    REFUSED_SCHEMA,
    Rows,
    concat,
    first_refused,
)
from pipeline.preprocess.sources.walk import walk

_FILE_SCHEMA = pa.schema(
    [
        ("key", pa.binary()),
        ("field", pa.int8()),
        ("label", pa.binary()),
        ("path", pa.binary()),
        ("size", pa.int64()),
        ("mtime", pa.string()),
    ]
)
LOOSE = "lies beside the class folders"
FEW_FOLDERS, MOST_LEVELS = 32, 2
"""Further levels are opened, so often at most, until there are so many folders to list at once."""
MOST_CALLS = 1024


def find_in_folder(data: DataConfig, root: str, field: str, store: TableStore) -> SourceScan:
    """Find the samples of a folder.

    If the target is a class, the label is the first folder on a file's path. With one modality and
    without targets in files of their own, every file is a sample, whatever its name. The decoder
    refuses what is not media. Otherwise the files of one name make a sample.

    Args:
        data: The modalities, the target, and what may be missing.
        root: A folder or URL.
        field: The field of the configuration, for errors.
        store: Runs the listing.

    Raises:
        UserError: The folder is missing, not a folder, empty, or has no class folders.
    """
    filesystem, base = filesystem_of(root)
    by_class = data.target.kind == "class"
    if is_web(root) and "?" in root:
        raise UserError(
            f"{field}={root}: a web server's folder is listed by its page, without a query; give a "
            "listing (.csv, .parquet, .jsonl) or .tar files"
        )
    if not exists(filesystem, base):
        raise UserError(f"{field}={root}: no such folder")
    if not is_folder(filesystem, base):
        kind = "one with a folder for each class" if by_class else "one with files"
        raise UserError(
            f"{field}={root}: not a folder; give {kind}, a listing (.csv, .parquet, .jsonl) or "
            ".tar files"
        )
    modalities = tuple(data.formats)
    target = target_field(data.target.kind)
    each = len(modalities) == 1 and target is None
    tables, refused = _listed(store, root, modalities, target, each=each, by_class=by_class)
    _check_any(sum(table.num_rows for table in tables), refused, by_class, field, root)
    wanted = None if each else SampleRequirement(modalities, data.allow_missing, target)
    return SourceScan(tables, refused, root, wanted, numbered=False)


def _listed(
    store: TableStore,
    root: str,
    modalities: tuple[str, ...],
    target: str | None,
    *,
    each: bool,
    by_class: bool,
) -> tuple[list[StoredTable], pa.Table]:
    """List a folder in calls of a few folders each, and return the files and the refused ones."""
    tables: list[StoredTable] = []
    refused: list[pa.Table] = []

    def run(folders: list[bytes], num_folders: int, *, deep: bool) -> list[bytes]:
        starts = range(0, len(folders), num_folders)
        calls = (
            (root, folders[start : start + num_folders], deep, modalities, target, each, by_class)
            for start in starts
        )
        left: list[bytes] = []
        for made, (more, below) in store.run(_list, calls):
            tables.extend(made)
            refused.append(more)
            left += below
        return left

    folders = run([b""], 1, deep=False)
    for _ in range(MOST_LEVELS):
        if 0 < len(folders) < FEW_FOLDERS:
            folders = run(folders, 1, deep=False)
    run(folders, -(-len(folders) // MOST_CALLS) or 1, deep=True)
    return tables, concat(refused, REFUSED_SCHEMA)


def _list(
    root: str,
    folders: list[bytes],
    deep: bool,
    modalities: tuple[str, ...],
    target: str | None,
    each: bool,
    by_class: bool,
) -> Generator[pa.Table, None, tuple[pa.Table, list[bytes]]]:
    """List some folders below the root, as a step.

    Yields:
        The files: samples of `FOUND_SCHEMA` if each is one, else members of `MEMBER_SCHEMA`.

    Returns:
        The refused files, and the folders below that are not listed if the listing is not `deep`.
    """
    filesystem, base = filesystem_of(root)
    names = None if each else FieldNames(modalities, target)
    finish = partial(_each, FIELD_CODES[modalities[0]]) if each else as_members
    rows, refused = Rows(_FILE_SCHEMA), Rows(REFUSED_SCHEMA)
    for file in walk(filesystem, base, folders, deep=deep):
        first, slash, _ = file.path.partition(b"/")
        reason = file.reason or (LOOSE if by_class and not slash else None)
        if reason is not None:
            refused.append(file.path, None, reason)
            continue
        key, code = file.path, 0
        if names is not None:
            folder, slash_before, name = file.path.rpartition(b"/")
            stem, code = names.split(name)
            key = folder + slash_before + stem
        label = first if by_class else None
        rows.append(key, code, label, file.path, file.size, file.mtime)
        yield from map(finish, rows.full())
    yield from map(finish, rows.rest())
    return concat(list(refused.rest()), REFUSED_SCHEMA), [] if deep else folders


def _each(code: int, files: pa.Table) -> pa.Table:
    """Make every file a sample of its own."""
    count = files.num_rows
    return pa.table(
        {
            "split": np.zeros(count, np.int8),
            "name": files["path"],
            "label": files["label"],
            "group": pa.nulls(count, pa.binary()),
            "row": pa.nulls(count, pa.int64()),
            "values_digest": pa.nulls(count, pa.binary()),
            "values_mtime": pa.nulls(count, pa.string()),
            "parts": parts_of(np.arange(count + 1), np.full(count, code), as_members(files)),
        },
        schema=FOUND_SCHEMA,
    )


def _check_any(count: int, refused: pa.Table, by_class: bool, field: str, root: str) -> None:
    if count:
        return
    loose = refused.filter(pa.compute.equal(refused["reason"], LOOSE))
    if loose.num_rows:
        tars = sum(name.endswith(b".tar") for name in loose["uri"].to_pylist())
        hint = "; to read its .tar files, give data.layout=tars" if tars else ""
        raise UserError(
            f"{field}={root}: holds {loose.num_rows} files but no class folders; put each class's "
            f"files into a folder of its name{hint}"
        )
    if refused.num_rows:
        raise UserError(f"{field}={root}: no file there can be used{first_refused(refused)}")
    what = "put each class's files into a folder there" if by_class else "put files there"
    raise UserError(f"{field}={root}: is empty; {what}")
