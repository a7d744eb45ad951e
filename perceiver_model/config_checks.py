"""The checks and readers that the configuration dataclasses share."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")

FORBID_EXTRA: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}
"""The `__pydantic_config__` of every configuration class.

With it, pydantic refuses unknown keys and numbers that are not finite.
"""


def refusal(config: object, field: str, allowed: str) -> ValueError:
    """Build the error for a bad field: its class, name and value, and the allowed values."""
    value = getattr(config, field)
    return ValueError(f"{type(config).__name__}.{field} is {value!r}; must be {allowed}")


def check_integers(config: object, *fields: str, least: int = 1) -> None:
    """Check that each field is an integer of at least `least`.

    Raises:
        ValueError: If one is not.
    """
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise refusal(config, field, f"an integer of at least {least}")


def check_multiple(config: object, field: str, of: str) -> None:
    """Check that a field is None or a positive multiple of another field.

    Args:
        config: The configuration.
        field: The name of the field.
        of: The name of the other field.

    Raises:
        ValueError: If it is not.
    """
    if getattr(config, field) is None:
        return
    check_integers(config, field)
    if getattr(config, field) % getattr(config, of):
        raise refusal(config, field, f"a multiple of {of} = {getattr(config, of)}")


def check_one_of(config: object, field: str, *allowed: object) -> None:
    """Check that a field is one of the allowed values, and of the same type.

    Raises:
        ValueError: If it is not.
    """
    value = getattr(config, field)
    if not any(value is one or (value == one and type(value) is type(one)) for one in allowed):
        raise refusal(config, field, "one of " + ", ".join(map(repr, allowed)))


def check_number(
    config: object,
    *fields: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Check that each field is a finite number within bounds.

    Args:
        config: The configuration.
        fields: The names of the fields.
        least: The smallest allowed value.
        above: A lower bound that is not allowed itself.
        most: The largest allowed value.
        below: An upper bound that is not allowed itself.

    Raises:
        ValueError: If one is not.
    """
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    given = [f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None]
    for field in fields:
        value = getattr(config, field)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not -math.inf < value < math.inf
            or (least is not None and value < least)
            or (above is not None and value <= above)
            or (most is not None and value > most)
            or (below is not None and value >= below)
        ):
            raise refusal(config, field, f"a number {' and '.join(given)}".rstrip())


def check_numbers(
    config: object, field: str, lengths: tuple[int, ...], *, above: float = -math.inf
) -> None:
    """Check that a field is a tuple of finite numbers.

    Args:
        config: The configuration.
        field: The name of the field.
        lengths: The allowed lengths of the tuple.
        above: The lower bound of the numbers, which is not allowed itself.

    Raises:
        ValueError: If it is not.
    """
    values = getattr(config, field)
    numbers = isinstance(values, tuple) and all(
        isinstance(value, int | float) and above < value < math.inf for value in values
    )
    if not numbers or len(values) not in lengths:
        counts = " or ".join(str(length) for length in sorted(set(lengths)))
        raise refusal(config, field, f"a tuple of {counts} finite number(s) above {above:g}")


def write_config(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass, with those inside it, in JSON's types.

    `read_config` reads the result of one dataclass.
    """
    return dataclasses.asdict(
        config,
        dict_factory=lambda items: {
            key: list(value) if isinstance(value, tuple) else value for key, value in items
        },
    )


def read_config(config_type: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a configuration dataclass from a mapping. Lists become tuples.

    Args:
        config_type: The dataclass.
        values: The value of each field by its name.

    Raises:
        ValueError: If `values` is not a mapping, a key is unknown or missing, or a value is not
            allowed.
    """
    name = config_type.__name__
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: expected a mapping, got {values!r}")
    fields = dataclasses.fields(config_type)  # type: ignore[arg-type]  # only given dataclasses
    if unknown := sorted(set(values) - {field.name for field in fields}):
        known = ", ".join(field.name for field in fields)
        raise ValueError(f"{name}: unknown key(s) {', '.join(unknown)}; known: {known}")
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    if missing := sorted(required - set(values)):
        raise ValueError(f"{name}: missing key(s) {', '.join(missing)}")
    return config_type(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one.

    Args:
        tree: The mappings, whose keys are strings.
        prefix: The text before every key.

    Returns:
        Each value under its keys, joined with dots: `{"training.epochs": 10, …}`.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
