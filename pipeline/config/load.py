"""Reads YAML files and dotted overrides into a `Config`."""

import copy
import difflib
import json
import re
import typing
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from perceiver_model.config_checks import flatten, plain_message, shortened
from pipeline.config.conditions import Space, contexts
from pipeline.config.fields import field_names_at, kinds_at, step
from pipeline.config.named_spaces import with_named_space
from pipeline.config.overrides import read_override
from pipeline.config.tracking_uri import named_tracking_uri
from pipeline.config.tree import Config
from pipeline.config.yaml_reader import read_yaml
from pipeline.errors import UserError

# A study may search only these. Other fields need other shards, or do not describe the model.
SEARCHABLE = (
    "model.encoder.",
    "model.decoder.",
    "model.autoregressive.",
    "model.adapter.",
    "model.positions.",
    "model.modalities.",
    "objective.",
    "training.",
)
SEED = "seed"
SEARCHED = ", ".join([*(f"{prefix}*" for prefix in SEARCHABLE), SEED])


def shipped_configs() -> list[str]:
    """Return the names of the configurations that come with the package."""
    names = [Path(entry.name) for entry in _shipped().iterdir()]
    return sorted(name.stem for name in names if name.suffix == ".yaml")


def _shipped() -> Traversable:
    return resources.files("pipeline.config") / "shipped"


def load_config(source: str, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a configuration.

    Args:
        source: The path of a YAML file, or the name of a shipped configuration.
        overrides: Texts such as `section.field=value`, as `read_override` reads them. The last one
            of a field wins.

    Raises:
        UserError: There is no such file, it is not YAML, a key is unknown, a type is wrong, or
            fields do not fit together. The text has one line for each fault, with the key's path.
    """
    tree = _read(source)
    for override in overrides:
        path, value = read_override(override)
        _set(tree, path, value)
    config = validate(with_named_space(tree, source, validate), source)
    # The URI is resolved here, because workers on other machines have other environments.
    uri = named_tracking_uri(config.tracking.uri)
    tracking = config.tracking.model_copy(update={"uri": uri})
    return config.model_copy(update={"tracking": tracking})


def validate(tree: dict[str, Any], source: str) -> Config:
    """Validate a tree of plain values.

    Args:
        tree: The sections of the configuration.
        source: The name of the configuration, for errors.

    Raises:
        UserError: The tree is not a configuration. The text has one line for each fault.
    """
    try:
        text = json.dumps(tree, default=str)
    except ValueError as error:  # a YAML anchor that contains itself
        raise UserError(f"{source}: {error}") from None
    try:
        config = Config.model_validate_json(text, strict=True)
    except ValidationError as error:
        lines = [f"{source}: {line}" for line in _lines(error)]
        raise UserError("\n".join(lines)) from None
    if config.study is not None:
        _check_space(config, source)
    return config


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """Return the same configuration with some dotted fields changed.

    Raises:
        UserError: A value is not allowed.
    """
    tree = config.tree()
    for path, value in values.items():
        _set(tree, path, value)
    return validate(tree, config.name)


def _read(source: str) -> dict[str, Any]:
    path = Path(source).expanduser()
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{source}: cannot be read: {error}") from None
    elif source in shipped_configs():
        text = (_shipped() / f"{source}.yaml").read_text("utf-8")
    else:
        names = shipped_configs()
        hint = did_you_mean(source, names) or f"shipped ones: {', '.join(names)}"
        raise UserError(f"{source}: no such configuration file, nor a shipped name; {hint}")
    try:
        tree = read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{source}: holds {type(tree).__name__}, not sections with fields")
    return tree


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, field = path.split(".")
    if sections[:2] == ["study", "space"]:  # the keys of this section are dotted paths
        sections, field = sections[:2], path.removeprefix("study.space.")
    for section in sections:
        inner = tree.get(section)
        if not isinstance(inner, dict):
            inner = {}
            tree[section] = inner
        tree = inner
    tree[field] = value


def did_you_mean(given: str, allowed: typing.Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the nearest allowed word, or an empty text."""
    near = difflib.get_close_matches(given, list(allowed), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _lines(error: ValidationError) -> list[str]:
    """Return one line for each wrong field: its path, the given value, and what is allowed."""
    wrong: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in _without_tags(item["loc"]))
        allowed_texts = wrong.setdefault(path, [])
        allowed = _allowed(item)
        if not allowed_texts:
            allowed_texts.append(allowed)
        elif "; must be " in allowed:  # another alternative of a union
            allowed_texts.append(allowed.partition("; must be ")[2])
    return [
        f"{path}: {' or '.join(allowed_texts)}" if path else allowed_texts[0]
        for path, allowed_texts in wrong.items()
    ]


def _allowed(error: Any) -> str:
    location, kind = error["loc"], error["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        siblings = field_names_at(location[:-1])
        hint = did_you_mean(str(location[-1]), siblings) or f"allowed: {', '.join(siblings)}"
        return f"unknown key; {_space_hint(location[-1:]) or hint}"
    if kind in ("missing", "missing_argument"):
        return "is missing"
    message = error["msg"]
    if kind == "value_error":  # from our own validator: drop the class that a dataclass names
        return re.sub(r"\b[A-Z]\w+\.(?=[\w.]+ is )", "", message.removeprefix("Value error, "))
    if kind == "union_tag_invalid":
        return f"kind is {error['ctx']['tag']!r}; must be {error['ctx']['expected_tags']}"
    if kind == "union_tag_not_found":
        hints = [f"is {shortened(error['input'])}, without a kind", _space_hint(error["input"])]
        hints.append(f"kind must be {', '.join(map(repr, kinds_at(location)))}")
        return "; ".join(filter(None, hints))
    if kind == "string_pattern_mismatch":
        message = f"must match {error['ctx']['pattern']}"
    return f"is {shortened(error.get('input'))}; {plain_message(message)}"


def _space_hint(keys: typing.Iterable[Any]) -> str:
    """Say how to write the first key that YAML merged with its value, or return an empty text."""
    glued = next((key for key in map(str, keys or ()) if ":" in key), None)
    return f"write {glued.replace(':', ': ', 1)!r}, with a space after the colon" if glued else ""


def _without_tags(location: tuple[Any, ...]) -> list[Any]:
    kept, current = [], Config
    for part in location:
        current, is_field = step(current, part)
        if is_field and not (isinstance(part, str) and ("[" in part or part in _TYPE_TAGS)):
            kept.append(part)
    return kept


# pydantic adds the alternatives of a plain union to its locations.
_TYPE_TAGS = {"str", "float", "int", "bool", "constrained-float"}


def _is_searchable(path: str) -> bool:
    """Return whether a study may search a field. Sections with another kind have other fields."""
    is_kind = path.endswith(".kind") and path.startswith(("model.", "objective."))
    return path == SEED or (path.startswith(SEARCHABLE) and not is_kind)


def _check_space(config: Config, source: str) -> None:
    """Check that every searched field exists, may be searched, and accepts each of its values."""
    assert config.study is not None
    known = flatten(config.tree())
    searchable = list(filter(_is_searchable, known))
    trial = config.tree()
    trial["study"] = None
    trial["cluster"]["num_workers"] = config.study.num_workers
    trial["training"]["epochs"] = config.study.epochs or config.training.epochs
    for path, space in config.study.space.items():
        where = f"{source}: study.space.{path}"
        if path not in known and not path.startswith("training.deepspeed."):
            allowed = f"a study searches {SEARCHED}"
            hint = did_you_mean(path, searchable) or allowed
            raise UserError(f"{where}: no such field; {hint}")
        if not _is_searchable(path):
            raise UserError(f"{where}: a study searches {SEARCHED} only")
        for value in space.ends:
            _check_value(trial, config.study.space, path, value, where)


def _check_value(trial: dict[str, Any], space: Space, path: str, value: Any, where: str) -> None:
    """Check that a field accepts a value beside some values of the fields of its condition."""
    first: str | None = None
    for context in contexts(space, path):
        tree = copy.deepcopy(trial)
        for field, each in {**context, path: value}.items():
            _set(tree, field, each)
        try:
            validate(tree, where)
            return
        except UserError as error:
            first = first or str(error).splitlines()[0]
    raise UserError(first or f"{where}: its conditions never hold")
