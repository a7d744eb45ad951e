"""Folders: each file is a sample, or the files of one name are one together."""

from collections.abc import Iterator

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
    group,
    join_labels,
    parts_of,
)
from pipeline.preprocess.sources.parts import exists, is_folder
from pipeline.preprocess.sources.tables import (
    FOUND_SCHEMA,
    REFUSED_SCHEMA,
    Rows,
    SourceScan,
    concat,
    first_refused,
    one_chunk,
)
from pipeline.preprocess.sources.walk import File, walk

_FILE_SCHEMA = pa.schema(
    [
        ("key", pa.binary()),
        ("field", pa.int8()),
        ("folder", pa.int32()),
        ("path", pa.binary()),
        ("size", pa.int64()),
        ("mtime", pa.string()),
    ]
)
LOOSE = "lies beside the class folders"


def find_in_folder(data: DataConfig, root: str, field: str) -> SourceScan:
    """Find the samples of a folder.

    If the target is a class, the label is the first folder on a file's path. With one modality and
    without targets in files of their own, every file is a sample, whatever its name. The decoder
    refuses what is not media. Otherwise the files of one name make a sample.

    Args:
        data: The modalities, the target, and what may be missing.
        root: A folder or URL.
        field: The field of the configuration, for errors.

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
    names = FieldNames(modalities, target) if len(modalities) > 1 or target else None
    files, refused, folders = _list(walk(filesystem, base), names, by_class)
    _check_any(files.num_rows, refused, by_class, field, root)
    labels = join_labels(files["folder"].to_numpy(), folders) if by_class else None
    if names is None:
        samples = _each(files, FIELD_CODES[modalities[0]], labels)
    else:
        if labels is not None:
            files = files.append_column("label", labels)
        wanted = SampleRequirement(modalities, data.allow_missing, target)
        samples, more = group(as_members(files), wanted)
        refused = concat([refused, more], REFUSED_SCHEMA)
    return SourceScan(samples, refused, root, numbered=False)


def _list(
    files: Iterator[File], names: FieldNames | None, by_class: bool
) -> tuple[pa.Table, pa.Table, list[bytes]]:
    """Return the files, the refused ones, and the names of the folders in the root."""
    rows, refused = Rows(_FILE_SCHEMA), Rows(REFUSED_SCHEMA)
    folders: dict[bytes, int] = {}
    for file in files:
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
        label = folders.setdefault(first, len(folders)) if by_class else -1
        rows.append(key, code, label, file.path, file.size, file.mtime)
    return rows.table(), refused.table(), list(folders)


def _each(files: pa.Table, code: int, labels: pa.Array | None) -> pa.Table:
    """Make every file a sample of its own."""
    count = files.num_rows
    paths = one_chunk(files["path"])
    fields = np.full(count, code)
    flat = as_members(files.set_column(0, "key", paths))
    return pa.table(
        {
            "split": np.zeros(count, np.int8),
            "name": paths,
            "label": pa.nulls(count, pa.binary()) if labels is None else labels,
            "group": pa.nulls(count, pa.binary()),
            "row": pa.nulls(count, pa.int64()),
            "values_digest": pa.nulls(count, pa.binary()),
            "values_mtime": pa.nulls(count, pa.string()),
            "parts": parts_of(np.arange(count + 1), fields, flat),
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
