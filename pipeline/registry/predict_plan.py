"""The inputs of a large prediction, written down in parts, so that no process holds them all."""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.folders import Folder
from pipeline.registry.predict_inputs import Input, Inputs
from pipeline.registry.predict_reading import AT_ONCE
from pipeline.runs.storage import read_bytes, write_bytes
from shards.parquet import encode_parquet

PART_INPUTS = 4 * AT_ONCE
"""A part has so many inputs. A kill costs the parts that were under way."""
FOLDER = "_plan"
"""The folder of the plan, in the folder of the predictions. Readers of Parquet pass over it."""
_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("path", pa.binary()),
        ("root", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("row", pa.string()),
        ("content", pa.binary()),
        ("error", pa.string()),
        ("stamp", pa.string()),
    ]
)
_MAX_BYTES = 1 << 32
_BYTES, _PATH = "b64", "path"


@dataclass(frozen=True)
class Plan:
    """How the inputs are cut into parts.

    Attributes:
        parts: The number of parts.
        inputs: The number of inputs.
        digest: The sha256 of all inputs: their names, places, sizes and times, in order.
        roots: The roots of the inputs. They may hold secrets, and are not written down.
    """

    parts: int
    inputs: int
    digest: str
    roots: tuple[str, ...]


def write_plan(inputs: Inputs, folder: Folder) -> Plan:
    """List the inputs and write them down, part by part.

    Args:
        inputs: The inputs.
        folder: The folder of the predictions.

    Raises:
        UserError: The inputs cannot be listed, or the folder cannot be written.
    """
    digest = hashlib.sha256()
    parts = count = 0
    left = iter(inputs)
    while some := list(islice(left, PART_INPUTS)):
        data = encode_parquet(_as_table(some))
        digest.update(hashlib.sha256(data).digest())
        write_bytes(_file(folder, parts), data)
        parts += 1
        count += len(some)
    return Plan(parts, count, digest.hexdigest(), tuple(inputs.roots))


def read_plan(folder: Folder, part: int) -> list[Input]:
    """Return the inputs of a part."""
    table = pq.read_table(pa.BufferReader(read_bytes(_file(folder, part), _MAX_BYTES)))
    return [_as_input(row) for row in table.to_pylist()]


def _file(folder: Folder, part: int) -> Folder:
    return folder / FOLDER / f"inputs-{part:06d}.parquet"


def _as_table(inputs: list[Input]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        each.name: [getattr(one, each.name) for one in inputs] for each in fields(Input)
    }
    columns["path"] = [None if p is None else _bytes_of(p) for p in columns["path"]]
    columns["row"] = [
        None if row is None else json.dumps(row, default=_plain) for row in columns["row"]
    ]
    return pa.table(columns, schema=_SCHEMA)


def _as_input(row: dict[str, Any]) -> Input:
    path = row["path"]
    return Input(
        **{
            **row,
            "path": None if path is None else path.decode("utf-8", "surrogateescape"),
            "row": None if row["row"] is None else dict(_values(json.loads(row["row"]))),
        }
    )


def _bytes_of(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _plain(value: Any) -> dict[str, str]:
    """Return a value of a row that JSON does not have."""
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    assert isinstance(value, Path)
    return {_PATH: base64.b64encode(_bytes_of(str(value))).decode()}


def _values(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if not isinstance(value, dict):
            yield name, value
            continue
        ((kind, text),) = value.items()
        data = base64.b64decode(text)
        yield name, Path(data.decode("utf-8", "surrogateescape")) if kind == _PATH else data
