"""Read a checkpoint's `state.json` field by field. It is untrusted: anyone may have written it."""

import json
import re
import sys
from collections.abc import Callable
from typing import Any

from cluster.loss_scale import GREATEST_SCALE, LEAST_SCALE
from pipeline.config.folders import Folder
from pipeline.runs.storage import read_bytes
from pipeline.training.stored_tensors import FileRecord
from shards.plain import is_count, is_name, is_sha256

WEIGHTS, MOMENTS, AVERAGE, CARRIED = KINDS = ("weights", "optimizer", "ema", "stream")
"""The kinds of tensors that a checkpoint may have, as its files are named."""
MAX_BYTES = 256 << 20
_PART = re.compile(rf"({'|'.join(KINDS)})-[0-9a-f]{{8}}-[0-9]{{5,}}-of-[0-9]{{5,}}\.safetensors")
_OLD_FILES = {
    "model.safetensors": WEIGHTS,
    "optimizer.safetensors": MOMENTS,
    "ema.safetensors": AVERAGE,
    "stream.safetensors": CARRIED,
}


def read_state(folder: Folder, name: str) -> tuple[dict[str, Any], dict[str, FileRecord]]:
    """Return the fields of a checkpoint's state, and what it says of the checkpoint's files.

    Args:
        folder: The folder of the checkpoint.
        name: The name of the state file.

    Raises:
        OSError: There is no such file.
        ValueError: The file is not a regular file, or a field is unknown, missing or has another
            type.
    """
    try:
        values = json.loads(read_bytes(folder / name, MAX_BYTES))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("not an object")
    files = _parts(values.pop("parts")) if "parts" in values else _files(values.pop("sha256", None))
    if "step" not in values:
        raise ValueError("step is missing")
    if odd := values.keys() - _FIELDS.keys():
        raise ValueError(f"unknown fields: {', '.join(sorted(odd))[:200]}")
    for field, value in values.items():
        if not _FIELDS[field](value):
            raise ValueError(f"{field} is of another type or out of range")
    if values.get("lost_steps", 0) > values["step"]:
        raise ValueError("lost_steps is more than step")
    for field in ("sums", "scores", "losses"):
        values[field] = tuple(values.get(field, ()))
    return values, files


def kind_of(file: str) -> str:
    """Return the kind of the tensors in a file of a checkpoint, by its name."""
    return _OLD_FILES.get(file) or file.partition("-")[0]


def _parts(values: Any) -> dict[str, FileRecord]:
    """Return the files of a checkpoint that every rank wrote a part of."""
    if not isinstance(values, dict) or not values:
        raise ValueError("parts is not an object with files")
    files = {}
    for name, fields in values.items():
        if not _PART.fullmatch(name):
            raise ValueError("parts names a file that is no part")
        if not isinstance(fields, dict) or fields.keys() != {"sha256", "bytes"}:
            raise ValueError("a part has not sha256 and bytes")
        if not is_sha256(fields["sha256"]) or not is_count(fields["bytes"]):
            raise ValueError("sha256 or bytes of a part is of another type or out of range")
        files[name] = FileRecord(fields["sha256"], fields["bytes"])
    return files


def _files(sha256: Any) -> dict[str, FileRecord]:
    """Return the files of a checkpoint of an older version, each with whole tensors."""
    needed = {"model.safetensors", "optimizer.safetensors"}
    if not isinstance(sha256, dict) or not needed <= sha256.keys() <= _OLD_FILES.keys():
        raise ValueError(f"it has no parts, and sha256 is not of {' and '.join(sorted(needed))}")
    if not all(map(is_sha256, sha256.values())):
        raise ValueError("sha256 is not 64 hexadecimal digits")
    return {name: FileRecord(value) for name, value in sha256.items()}


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # JSON integers are unbounded


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_name(name) and (item is None or _is_number(item)) for name, item in value.items()
    )


def _is_scale(value: Any) -> bool:
    return value is None or (_is_number(value) and LEAST_SCALE <= value <= GREATEST_SCALE)


def _is_window(value: Any) -> bool:
    return value is None or value == "auto" or (is_count(value) and value >= 1)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": is_count,
    "epoch": is_count,
    "samples": is_count,
    "metrics": _are_metrics,
    "score": lambda value: value is None or _is_number(value),
    "sums": _are_numbers,
    "window": _is_window,
    "scores": _are_numbers,
    "losses": _are_numbers,
    "bad_steps": is_count,
    "lost_steps": is_count,
    "loss_scale": _is_scale,
    "loss_scale_steps": is_count,
    "overflow_steps": is_count,
}
