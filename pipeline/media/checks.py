"""Checks of the formats' fields. An error names the field, its value and the allowed values."""

import math
from typing import Any


def check_whole(fmt: Any, *names: str, least: int) -> None:
    """Raise ValueError unless the fields `names` hold integers of at least `least`."""
    for name in names:
        value = getattr(fmt, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; must be an integer of at least {least}")


def check_finite(
    fmt: Any,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> None:
    """Check that fields hold finite numbers within bounds.

    Args:
        fmt: The object with the fields.
        names: The names of the fields.
        least: The smallest allowed value.
        above: A value that each number must exceed.
        most: The largest allowed value.

    Raises:
        ValueError: A field has another value; the message names it.
    """
    bounds = [
        f"{text} {bound:g}"
        for text, bound in (("at least", least), ("above", above), ("at most", most))
        if bound is not None
    ]
    for name in names:
        value = getattr(fmt, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or (least is not None and value < least)
            or (above is not None and value <= above)
            or (most is not None and value > most)
        ):
            raise ValueError(f"{name} is {value!r}; must be a number {' and '.join(bounds)}")


def check_one_of(fmt: Any, name: str, *allowed: object) -> None:
    """Raise ValueError unless the field `name` holds one of the `allowed` values."""
    value = getattr(fmt, name)
    if not any(value is one or (value == one and type(value) is type(one)) for one in allowed):
        raise ValueError(f"{name} is {value!r}; must be one of {', '.join(map(repr, allowed))}")
