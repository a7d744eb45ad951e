"""Which raw files there are, and which split, class and shard each belongs to."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Config, DataConfig, absolute
from pipeline.errors import UserError
from pipeline.section import digest

# Files that systems leave in folders; nobody means them as samples.
IGNORED_NAMES = frozenset({"Thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class MediaFile:
    """One raw file: its path below its split's root, its class, and what tells it has changed."""

    split: str
    path: str
    class_name: str
    size: int
    mtime: str

    @property
    def uri(self) -> str:
        """``SPLIT/CLASS/…/FILE``: names the file wherever its root lies."""
        return f"{self.split}/{self.path}"


@dataclass(frozen=True)
class Listing:
    """All files, in the order in which shards take them.

    Attributes:
        files: by split, then in an order drawn by hash, so that every shard mixes the classes.
        classes: sorted names; a target is an index into them.
        roots: each split's folder (absolute) or URL.
        loose: files beside the class folders, which therefore have no class.
    """

    files: tuple[MediaFile, ...]
    classes: tuple[str, ...]
    roots: dict[str, str]
    loose: tuple[MediaFile, ...] = ()

    @property
    def content_digest(self) -> str:
        """Names the paths and sizes; the same wherever and whenever the files were copied."""
        return digest([(file.uri, file.size) for file in self.files + self.loose])

    @property
    def state_digest(self) -> str:
        """As :attr:`content_digest`, and it changes when a file is written again."""
        return digest([(file.uri, file.size, file.mtime) for file in self.files + self.loose])

    def counts(self) -> dict[str, int]:
        """Files of each split."""
        counts: dict[str, int] = {}
        for file in self.files:
            counts[file.split] = counts.get(file.split, 0) + 1
        return counts


def list_media(config: Config) -> Listing:
    """List the class folders of every split.

    Raises:
        UserError: a folder is missing, empty or without class folders, only one class is there, a
            split has a class that ``data.train`` lacks, or ``data.validation`` leaves none over.
    """
    data = config.data
    train, loose = _walk(data.train, "train", "data.train")
    classes = tuple(sorted({file.class_name for file in train}))
    if len(classes) < 2:
        raise UserError(
            f"data.train={data.train}: one class only ({classes[0]!r}); a classifier needs at "
            "least two class folders"
        )
    roots = {"train": data.train}
    held_out: list[MediaFile] = []
    if isinstance(data.validation, str):
        held_out, more = _walk(data.validation, "validation", "data.validation")
        loose += more
        roots["validation"] = data.validation
    elif data.validation is not None:
        train, held_out = _hold_out(train, data.validation, config.seed)
        roots["validation"] = data.train
    test: list[MediaFile] = []
    if data.test is not None:
        test, more = _walk(data.test, "test", "data.test")
        loose += more
        roots["test"] = data.test
    _check_classes(classes, {"data.validation": held_out, "data.test": test}, data)
    ordered = [
        file
        for files in (train, held_out, test)
        for file in sorted(files, key=lambda file: _rank(file, config.seed))
    ]
    roots = {split: absolute(root) for split, root in roots.items()}
    return Listing(tuple(ordered), classes, roots, tuple(loose))


def _walk(root: str, split: str, field: str) -> tuple[list[MediaFile], list[MediaFile]]:
    """The files in class folders, and those beside them."""
    filesystem, base = fsspec.core.url_to_fs(root)
    if not filesystem.exists(base):
        raise UserError(f"{field}={root}: no such folder")
    if not filesystem.isdir(base):
        raise UserError(f"{field}={root}: not a folder; give one with a folder for each class")
    files: list[MediaFile] = []
    loose: list[MediaFile] = []
    for path, info in filesystem.find(base, detail=True).items():
        relative = PurePosixPath(path[len(base.rstrip("/")) + 1 :])
        if relative.name in IGNORED_NAMES or any(part.startswith(".") for part in relative.parts):
            continue
        changed = info.get("mtime") or info.get("LastModified") or info.get("ETag") or ""
        size = int(info.get("size") or 0)
        class_name = relative.parts[0] if len(relative.parts) > 1 else ""
        file = MediaFile(split, str(relative), class_name, size, str(changed))
        (files if class_name else loose).append(file)
    if loose and not files:
        raise UserError(
            f"{field}={root}: holds {len(loose)} files but no class folders; put each class's "
            "files into a folder of its name"
        )
    if not files:
        raise UserError(f"{field}={root}: is empty; put each class's files into a folder there")
    return files, loose


def _rank(file: MediaFile, seed: int) -> bytes:
    name = os.fsencode(f"{seed}\0{file.uri}")
    return hashlib.sha256(name).digest()


def _hold_out(
    files: list[MediaFile], share: float, seed: int
) -> tuple[list[MediaFile], list[MediaFile]]:
    """Split off ``share`` of each class, at least one file of it; by hash, so it stays put."""
    by_class: dict[str, list[MediaFile]] = {}
    for file in files:
        by_class.setdefault(file.class_name, []).append(file)
    kept, held_out = [], []
    for name, members in by_class.items():
        if len(members) < 2:
            raise UserError(
                f"data.validation={share:g}: class {name!r} has one file only, none would be left "
                "to train on; add files, or give validation a folder of its own"
            )
        members.sort(key=lambda file: _rank(file, seed))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out += [MediaFile("validation", *_rest(file)) for file in members[:count]]
        kept += members[count:]
    return kept, held_out


def _rest(file: MediaFile) -> tuple[str, str, int, str]:
    return file.path, file.class_name, file.size, file.mtime


def _check_classes(
    classes: tuple[str, ...], parts: dict[str, list[MediaFile]], data: DataConfig
) -> None:
    for field, files in parts.items():
        unknown = sorted({file.class_name for file in files} - set(classes))
        if unknown:
            raise UserError(
                f"{field}={getattr(data, field.removeprefix('data.'))}: class folders "
                f"{', '.join(map(repr, unknown[:5]))} are not in data.train"
            )


_PLAN_SCHEMA = pa.schema(
    [("split", pa.string()), ("path", pa.binary()), ("class_name", pa.binary()),
     ("target", pa.int64()), ("size", pa.int64())]
)  # fmt: skip


def write_plan(listing: Listing, path: Path, samples_per_shard: int) -> int:
    """Cut the listing into shards of one split each; row group N of the file is shard N.

    Returns:
        The number of shards.
    """
    targets = {name: number for number, name in enumerate(listing.classes)}
    path.parent.mkdir(parents=True, exist_ok=True)
    shards = 0
    with pq.ParquetWriter(path, _PLAN_SCHEMA) as writer:
        for split in listing.roots:
            files = [file for file in listing.files if file.split == split]
            for start in range(0, len(files), samples_per_shard):
                part = files[start : start + samples_per_shard]
                columns: dict[str, list[Any]] = {
                    "split": [file.split for file in part],
                    "path": [os.fsencode(file.path) for file in part],
                    "class_name": [os.fsencode(file.class_name) for file in part],
                    "target": [targets[file.class_name] for file in part],
                    "size": [file.size for file in part],
                }
                table = pa.table(columns, schema=_PLAN_SCHEMA)
                writer.write_table(table, row_group_size=len(part))
                shards += 1
    return shards


def read_plan(path: Path, shard: int) -> list[dict[str, Any]]:
    """Rows of one shard: split, path, class_name, target, size."""
    rows = pq.ParquetFile(path).read_row_group(shard).to_pylist()
    for row in rows:
        row["path"] = os.fsdecode(row["path"])
        row["class_name"] = os.fsdecode(row["class_name"])
    return rows
