"""JSON as RFC 8259 has it: no `NaN`, no `Infinity`."""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, **options: Any) -> str:
    """The JSON text of plain values; a number that is not finite becomes `null`.

    Args:
        value: dictionaries, lists, tuples, texts, numbers, booleans and None.
        options: of `json.dumps`.
    """
    return json.dumps(without_nan(value), allow_nan=False, **options)


def finite_items(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """The items whose value is finite."""
    return [(name, float(value)) for name, value in values.items() if math.isfinite(value)]


def without_nan(value: Any) -> Any:
    """The same value with None in place of every NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return value
