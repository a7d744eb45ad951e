"""Trees of small files for the tests of sources, and what is listed in them."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.config.data import DataConfig
from pipeline.config.load import load_config
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.sources import SourceTable, TableStore, list_sources

IMAGE = {"height": 8, "width": 8}
# What the rows of `write_listing` hold.
IMAGE_ROWS: dict[str, Any] = {"columns": {"image": "file"}, "target": {"column": "kind"}}
TEXT_ROWS: dict[str, Any] = {"columns": {"text": "words"}, "target": {"column": "kind"}}
TABLE_COLUMNS = {"numeric": ["age"], "categorical": ["town"]}
FORMATS: dict[str, Any] = {
    "image": IMAGE,
    "audio": {},
    "video": {"num_frames": 2, "height": 8, "width": 8},
    "points": {"num_points": 8},
    "text": {"max_length": 64},
}


def make_files(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    """`counts[NAME]` files in each class folder, each of its own size."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            (root / name / f"{number:03d}.png").write_bytes(b"x" * (number + 1))
    return root


def make_tree(root: Path, *names: str) -> Path:
    """Files of these names, each holding its name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def make_tar(path: Path, members: dict[str, bytes], **options: Any) -> Path:
    """A tar of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def data_config(train: Path | str, modalities: tuple[str, ...] = ("image",), **data: Any) -> Config:
    """A configuration with these settings of `data` by keyword, and `seed`."""
    seed = data.pop("seed", 0)
    fields = {"train": str(train), **{name: FORMATS[name] for name in modalities}, **data}
    try:
        section = DataConfig.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"]) from None
    # SourceTable needs the data alone: no model must fit them.
    return load_config("digits").model_copy(update={"seed": seed, "data": section})


def listed(
    train: Path | str,
    modalities: tuple[str, ...] = ("image",),
    known: Any = None,
    known_classes: tuple[str, ...] = (),
    **data: Any,
) -> SourceTable:
    """The listing of `data.train`, with other settings as `data_config` takes them."""
    store = TableStore()
    earlier = [] if known is None else [store.put(known)]
    return list_sources(data_config(train, modalities, **data), earlier, known_classes, store)


def refusal(*args: Any, **data: Any) -> str:
    """The one line with which sources are refused."""
    with pytest.raises(UserError) as caught:
        listed(*args, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(source_table: SourceTable, split: str | None = None) -> list[dict[str, Any]]:
    """The samples in their order: uri, target, row, and parts by field."""
    table = source_table.table if split is None else source_table.of_split(split)
    found = []
    for row in table.to_pylist():
        parts = {part["field"]: part for part in row["parts"]}
        assert len(parts) == len(row["parts"])
        found.append({**row, "uri": os.fsdecode(row["uri"]), "parts": parts})
    return found


def uris(source_table: SourceTable, split: str | None = None) -> list[str]:
    """The samples' names, in their order."""
    return [row["uri"] for row in rows(source_table, split)]


def classes_of(source_table: SourceTable, split: str | None = None) -> dict[str, str]:
    """The class of every sample, by its name."""
    return {row["uri"]: source_table.classes[row["target"]] for row in rows(source_table, split)}


def paths(source_table: SourceTable, field: str = "image") -> dict[str, str]:
    """The path of every sample's file for a field, by the sample's name."""
    return {
        row["uri"]: os.fsdecode(row["parts"][field]["path"])
        for row in rows(source_table)
        if field in row["parts"]
    }


def refused(source_table: SourceTable) -> dict[str, str]:
    """Why things were refused, by their name."""
    return {os.fsdecode(row["uri"]): row["reason"] for row in source_table.refused.to_pylist()}


every_suffix = pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])


def write_listing(folder: Path, suffix: str, values: dict[str, list], name: str = "rows") -> Path:
    """The same rows as any kind of listing."""
    path = folder / f"{name}{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(values)
    if suffix == ".csv":
        pa.csv.write_csv(table, path)
    elif suffix == ".parquet":
        pq.write_table(table, path, row_group_size=7)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return path
