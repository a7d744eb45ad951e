"""Checks and reading shared by the configuration dataclasses."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")

FORBID_EXTRA: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}
"""`__pydantic_config__` of every configuration class: pydantic then refuses unknown keys
and numbers that are not finite."""


def refusal(config: object, field: str, allowed: str) -> ValueError:
    """The error for a bad field: its class, name and value, and what is allowed."""
    value = getattr(config, field)
    return ValueError(f"{type(config).__name__}.{field} = {value!r}: must be {allowed}")


def check_positive_integers(config: object, *fields: str) -> None:
    """Raises ValueError unless each field is an integer of at least 1."""
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise refusal(config, field, "an integer of at least 1")


def check_counts(config: object, *fields: str) -> None:
    """Raises ValueError unless each field is an integer of at least 0."""
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise refusal(config, field, "an integer of at least 0")


def check_multiple(config: object, field: str, of: str) -> None:
    """Raises ValueError unless the field is None or a positive multiple of the field `of`."""
    if getattr(config, field) is None:
        return
    check_positive_integers(config, field)
    if getattr(config, field) % getattr(config, of):
        raise refusal(config, field, f"a multiple of {of} = {getattr(config, of)}")


def check_probability(config: object, field: str) -> None:
    """Raises ValueError unless the field is a number of at least 0 and below 1."""
    value = getattr(config, field)
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise refusal(config, field, "at least 0 and below 1")


def check_one_of(config: object, field: str, *allowed: object) -> None:
    """Raises ValueError unless the field is one of the allowed values."""
    if getattr(config, field) not in allowed:
        raise refusal(config, field, "one of " + ", ".join(repr(value) for value in allowed))


def check_number(config: object, field: str, *, above: float, below: float = math.inf) -> None:
    """Raises ValueError unless the field is a number strictly between the bounds."""
    value = getattr(config, field)
    if not isinstance(value, int | float) or not above < value < below:
        raise refusal(config, field, f"a number above {above:g} and below {below:g}")


def check_numbers(
    config: object, field: str, lengths: tuple[int, ...], *, above: float = -math.inf
) -> None:
    """Raises ValueError unless the field is a tuple of finite numbers of one of the lengths."""
    values = getattr(config, field)
    numbers = isinstance(values, tuple) and all(
        isinstance(value, int | float) and above < value < math.inf for value in values
    )
    if not numbers or len(values) not in lengths:
        counts = " or ".join(str(length) for length in sorted(set(lengths)))
        raise refusal(config, field, f"a tuple of {counts} finite number(s) above {above:g}")


def write_config(config: Any) -> dict[str, Any]:
    """A configuration dataclass and those in it as JSON's types; `read_config` undoes each."""
    return dataclasses.asdict(
        config,
        dict_factory=lambda items: {
            key: list(value) if isinstance(value, tuple) else value for key, value in items
        },
    )


def read_config(config_type: type[Config], values: Mapping[str, Any]) -> Config:
    """Builds a configuration dataclass from a mapping; JSON's lists become tuples.

    Raises ValueError for anything but a mapping, and for unknown or missing keys.
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


def read_kind(config_types: tuple[Any, ...], values: Any) -> Any:
    """Like `read_config`, for the one of several classes whose `kind` the mapping names."""
    by_kind = {config_type.kind: config_type for config_type in config_types}
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if kind not in by_kind:
        raise ValueError(f"expected a mapping whose kind is one of {list(by_kind)}, got {values!r}")
    return read_config(by_kind[kind], values)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Makes one mapping of nested ones.

    Args:
        tree: the mappings, whose keys are strings.
        prefix: goes before every key.

    Returns:
        Each value under its keys joined with dots: ``{"training.epochs": 10, …}``.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
