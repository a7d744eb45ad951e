"""Overrides on the command line, such as `section.field=value`."""

import json
import typing
from typing import Any

import yaml

from pipeline.config.data import SPLITS
from pipeline.config.fields import fields_of, types_of_field
from pipeline.config.yaml_reader import is_quoted, read_yaml
from pipeline.errors import UserError


def read_override(override: str) -> tuple[str, Any]:
    """Read the dotted path and the value of one override.

    A value is YAML. A text field takes the value literally, so that paths keep their `#` and `: `.
    There are three exceptions. `null` unsets the field. Quotation marks around a text are removed.
    A value that fits another type of the field has that type, as in `data.validation=0.2`.

    Args:
        override: A text such as `section.field=value`.

    Returns:
        The path as given, and the value in the types of YAML.

    Raises:
        UserError: There is no `=`, or the value is not YAML.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"{override!r}: overrides are section.field=value")
    types = types_of_field(path.split("."))
    try:
        value = read_yaml(text)
        if str not in types or value is None or is_quoted(text) or _takes(types, value):
            return path, value
    except yaml.YAMLError as error:
        if str not in types:
            reason = " ".join(str(error).split())
            raise UserError(f"{override!r}: not YAML: {reason}") from None
    return path, text


def sources_of_overrides(overrides: typing.Sequence[str]) -> dict[str, str]:
    """Return the new source of each split, from overrides of `data.train`, `validation` and `test`.

    Raises:
        UserError: An override is of another field, or its value is not text.
    """
    sources = {}
    for path, value in map(read_override, overrides):
        section, _, split = path.partition(".")
        if section != "data" or split not in SPLITS or not isinstance(value, str):
            fields = ", ".join(f"data.{name}" for name in SPLITS)
            raise UserError(f"{path}: only the sources {fields} can be given here")
        sources[split] = value
    return sources


def write_override(path: str, text: str) -> str:
    """Return the override that gives a text field exactly this text, whatever characters it has."""
    return f"{path}={json.dumps(text)}"


def _takes(types: list[Any], value: Any) -> bool:
    """Return whether a value from YAML has one of the field's types other than text."""
    if isinstance(value, str):
        return False
    if isinstance(value, dict):
        return any(typing.get_origin(t) is dict or fields_of(t) for t in types)
    if isinstance(value, list):
        return any(typing.get_origin(t) in (list, tuple) for t in types)
    if isinstance(value, bool):
        return bool in types
    return type(value) in types or (isinstance(value, int) and float in types)
