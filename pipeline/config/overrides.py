"""Overrides on the command line: `section.field=value`."""

import json
import typing
from typing import Any

import yaml

from pipeline.config.data import SPLITS
from pipeline.config.fields import fields_of, types_of_field
from pipeline.config.yaml_reader import is_quoted, read_yaml
from pipeline.errors import UserError


def read_override(override: str) -> tuple[str, Any]:
    """The dotted path and the value of one override.

    A value is YAML. A field that takes text takes the value as it stands, so that paths keep their
    `#` and `: `, with three exceptions: `null` unsets the field, text in quotation marks is
    without them, and what another type of the field takes (`data.validation=0.2`) is of that
    type.

    Args:
        override: `section.field=value`.

    Returns:
        The path as given, and the value in the types of YAML.

    Raises:
        UserError: there is no `=`, or the value is not YAML.
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


def places_of_overrides(overrides: typing.Sequence[str]) -> dict[str, str]:
    """Split to place, of overrides of `data.train`, `data.validation` and `data.test`.

    Raises:
        UserError: it is another field, or no text.
    """
    places = {}
    for path, value in map(read_override, overrides):
        section, _, split = path.partition(".")
        if section != "data" or split not in SPLITS or not isinstance(value, str):
            fields = ", ".join(f"data.{name}" for name in SPLITS)
            raise UserError(f"{path}: only the places {fields} can be given here")
        places[split] = value
    return places


def write_override(path: str, text: str) -> str:
    """The override that gives a text field exactly this text, whatever characters it has."""
    return f"{path}={json.dumps(text)}"


def _takes(types: list[Any], value: Any) -> bool:
    """Whether one of the field's types other than text is that of a value from YAML."""
    if isinstance(value, str):
        return False
    if isinstance(value, dict):
        return any(typing.get_origin(t) is dict or fields_of(t) for t in types)
    if isinstance(value, list):
        return any(typing.get_origin(t) in (list, tuple) for t in types)
    if isinstance(value, bool):
        return bool in types
    return type(value) in types or (isinstance(value, int) and float in types)
