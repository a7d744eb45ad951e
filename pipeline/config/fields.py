"""Finds the fields of the configuration and their types by their paths."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from pipeline.config.tree import Config


def alternatives(annotation: Any) -> list[Any]:
    """Return the alternatives of a type, without Annotated and None."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [m for arg in typing.get_args(annotation) for m in alternatives(arg)]
    return [] if annotation in (None, type(None)) else [annotation]


def fields_of(section: Any) -> dict[str, Any]:
    """Return the types of a section's fields by name; empty if it is not a section."""
    if isinstance(section, type) and issubclass(section, BaseModel):
        return {
            field.alias or name: field.annotation for name, field in section.model_fields.items()
        }
    if dataclasses.is_dataclass(section):
        hints = typing.get_type_hints(section)
        return {field.name: hints[field.name] for field in dataclasses.fields(section)}
    return {}


def step(current: Any, part: Any) -> tuple[Any, bool]:
    """Follow one part of a location from pydantic.

    Args:
        current: The type at the location so far.
        part: The next part of the location.

    Returns:
        The type there, or None if unknown, and whether the part is a field. Otherwise it is the tag
        of a union.
    """
    for member in alternatives(current):
        fields = fields_of(member)
        if part in fields:
            return fields[part], True
        if typing.get_origin(member) is dict:
            return typing.get_args(member)[1], True
    for member in alternatives(current):
        kind = fields_of(member).get("kind")
        if part in typing.get_args(kind) or part == getattr(member, "__name__", None):
            return member, False
    return None, True


def types_of_field(path: Sequence[str]) -> list[Any]:
    """Return the types that a field accepts, in every kind of section that has it.

    Args:
        path: The parts of the field's dotted path, from the root of the tree.

    Returns:
        The alternatives without `None`; empty if no section has such a field.
    """
    current: list[Any] = [Config]
    for part in path:
        inner: list[Any] = []
        for member in current:
            if typing.get_origin(member) is dict:
                inner += alternatives(typing.get_args(member)[1])
            else:
                inner += alternatives(fields_of(member).get(part))
        current = inner
    return current


def _types_at(location: tuple[Any, ...]) -> list[Any]:
    current: Any = Config
    for part in location:
        current, _ = step(current, part)
    return alternatives(current)


def field_names_at(location: tuple[Any, ...]) -> list[str]:
    """Return the names of the fields of the section at a location from pydantic."""
    return [name for member in _types_at(location) for name in fields_of(member)]


def kinds_at(location: tuple[Any, ...]) -> list[str]:
    """Return the kinds of section that are allowed at a location from pydantic."""
    kinds = (fields_of(member).get("kind") for member in _types_at(location))
    return [name for kind in kinds for name in typing.get_args(kind)]
