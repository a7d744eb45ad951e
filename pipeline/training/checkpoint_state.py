"""Read a checkpoint's `state.json` field by field. It is untrusted: anyone may have written it."""

import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from shards.plain import is_count, is_name, is_sha256
from shards.set_files import read_file

_MAX_BYTES = 64 << 20


def read_state(
    folder: Path, name: str, tensors: Collection[str], optional: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of a checkpoint's state, and the sha256 of its tensor files.

    Args:
        folder: The folder of the checkpoint.
        name: The name of the state file.
        tensors: The names of the tensor files. The state may name no others.
        optional: The names of tensor files that it may also name.

    Raises:
        OSError: There is no such file.
        ValueError: The file is not a regular file, or a field is unknown, missing or has another
            type.
    """
    try:
        values = json.loads(read_file(folder, name, _MAX_BYTES))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("not an object")
    sha256 = values.pop("sha256", None)
    if not isinstance(sha256, dict) or sha256.keys() - set(optional) != set(tensors):
        raise ValueError(f"sha256 is not of {' and '.join(sorted(tensors))}")
    if not all(map(is_sha256, sha256.values())):
        raise ValueError("sha256 is not 64 hexadecimal digits")
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
    return values, sha256


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # JSON integers are unbounded


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_name(name) and (item is None or _is_number(item)) for name, item in value.items()
    )


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
}
