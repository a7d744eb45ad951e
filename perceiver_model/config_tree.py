"""Read nested configuration dataclasses from JSON, guided by the types of their fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints

from perceiver_model.config_checks import read_config, write_config

Config = TypeVar("Config")


class ConfigTree:
    """The base of configuration dataclasses that are written as JSON and read again."""

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration and its parts in JSON's types; `from_dict` reads them."""
        return write_config(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a mapping that `to_dict` wrote.

        Raises:
            ValueError: If a key is unknown or missing, or a value is not allowed.
        """
        return read_tree(cls, values)


def read_tree(config_type: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a configuration from the result of `config_checks.write_config`.

    Args:
        config_type: The dataclass.
        values: The value of each field by its name.

    Raises:
        ValueError: If a key is unknown or missing, or a value is not allowed, anywhere in the tree.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{config_type.__name__}: expected a mapping, got {values!r}")
    hints = get_type_hints(config_type)
    parts = {
        key: _read_part(f"{config_type.__name__}.{key}", hints[key], value)
        if key in hints
        else value
        for key, value in values.items()
    }
    return read_config(config_type, parts)


def _read_part(name: str, hint: Any, value: Any) -> Any:
    """Return the value of a field as the type of the field requires.

    The type is a dataclass, a mapping of dataclasses, or neither.
    """
    if get_origin(hint) is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}: expected a mapping, got {value!r}")
        item_hint = get_args(hint)[1]
        return {key: _read_part(f"{name}[{key!r}]", item_hint, item) for key, item in value.items()}
    kinds: list[Any] = [
        part for part in get_args(hint) or (hint,) if dataclasses.is_dataclass(part)
    ]
    if not kinds or (value is None and type(None) in get_args(hint)):
        return value
    if not hasattr(kinds[0], "kind"):
        return read_tree(kinds[0], value)
    by_kind = {part.kind: part for part in kinds}
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind not in by_kind:
        allowed = f"a mapping whose kind is one of {list(by_kind)}"
        raise ValueError(f"{name}: expected {allowed}, got {value!r}")
    return read_tree(by_kind[kind], value)
