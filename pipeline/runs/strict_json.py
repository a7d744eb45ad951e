"""JSON as RFC 8259 defines it: without `NaN` and `Infinity`."""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, **options: Any) -> str:
    """Return the JSON text of plain values. A number that is not finite becomes `null`.

    Args:
        value: Dictionaries, lists, tuples, texts, numbers, booleans and None.
        options: The options of `json.dumps`.
    """
    return json.dumps(without_nan(value), allow_nan=False, **options)


def finite_items(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the items whose value is finite."""
    return [(name, float(value)) for name, value in values.items() if math.isfinite(value)]


def without_nan(value: Any) -> Any:
    """Return the same value with None instead of every NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return value
