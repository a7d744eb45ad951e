"""Configuration dataclasses whose fields pydantic checks, and the types of their fields."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, WrapValidator
from pydantic import dataclasses as pydantic_dataclasses
from pydantic_core.core_schema import ValidatorFunctionWrapHandler

Config = TypeVar("Config")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""pydantic converts no value to another type, and refuses unknown keys and infinite numbers."""


def _keep_integers(
    value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> int | float:
    """Check a number. In JSON an integer becomes a float; in Python it stays an integer.

    So both are written as before: what YAML says in the digests of shard sets and in the records of
    runs, and what Python code says in presets and in the cards of models.
    """
    checked: float = check(value)
    return checked if info.mode == "json" else value


Count = Annotated[int, Field(ge=1)]
"""An integer of at least 1."""
WholeNumber = Annotated[int, Field(ge=0)]
"""An integer of at least 0."""
KEEP_INTEGERS = WrapValidator(_keep_integers)
"""The last annotation of every field of numbers."""
Number = Annotated[float, KEEP_INTEGERS]
"""A finite number."""
PositiveNumber = Annotated[float, Field(gt=0), KEEP_INTEGERS]
"""A finite number above 0."""
DropProbability = Annotated[float, Field(ge=0, lt=1), KEEP_INTEGERS]
"""A number of at least 0 and below 1."""
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
"""A tuple of texts that are not empty. A list becomes a tuple."""


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, Field)
)
def config_dataclass(cls: type[Config]) -> type[Config]:
    """Make a class a frozen dataclass whose fields pydantic checks.

    Its constructor takes keyword arguments, and raises a `ValueError` of one line that names each
    bad field, its value, and what is allowed. `__post_init__` then compares fields. A pydantic
    model can contain the class.
    """
    config_type: Any = pydantic_dataclasses.dataclass(cls, frozen=True, kw_only=True, config=STRICT)
    check = config_type.__init__

    def init(self: Any, **values: Any) -> None:
        try:
            check(self, **values)
        except ValidationError as error:
            raise ValueError(_one_line(type(self).__name__, error)) from None

    config_type.__init__ = init
    checked: type[Config] = config_type
    return checked


def _one_line(name: str, error: ValidationError) -> str:
    """Return the faults of a configuration in one line."""
    faults = []
    for fault in error.errors(include_url=False):
        field = ".".join([name, *map(str, fault["loc"])])
        if fault["type"] == "value_error":
            faults.append(str(fault["ctx"]["error"]))
        elif fault["type"] == "unexpected_keyword_argument":
            faults.append(f"{field} is an unknown key")
        elif fault["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            faults.append(f"{field} is missing")
        else:
            faults.append(f"{field} is {shortened(fault['input'])}; {plain_message(fault['msg'])}")
    return "; ".join(faults)


def plain_message(message: str) -> str:
    """Return a message of pydantic in the words of the project: `must be greater than 0`."""
    for theirs in ("Input should", "Tuple should", "List should", "String should"):
        message = message.replace(theirs, "must")
    return message


def shortened(value: Any) -> str:
    """Return what `repr` shows of a value, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def refusal(config: object, field: str, allowed: str) -> ValueError:
    """Build the error for a bad field: its class, name and value, and the allowed values."""
    value = getattr(config, field)
    return ValueError(f"{type(config).__name__}.{field} is {value!r}; must be {allowed}")


def check_multiple(config: object, field: str, of: str) -> None:
    """Check that a field is None or a multiple of another field.

    Args:
        config: The configuration.
        field: The name of the field.
        of: The name of the other field.

    Raises:
        ValueError: If it is not.
    """
    value = getattr(config, field)
    if value is not None and value % getattr(config, of):
        raise refusal(config, field, f"a multiple of {of} = {getattr(config, of)}")


def check_length(config: object, field: str, *lengths: int) -> None:
    """Check that a tuple has one of the allowed lengths.

    Args:
        config: The configuration.
        field: The name of the field.
        lengths: The allowed lengths.

    Raises:
        ValueError: If it has another length.
    """
    if len(getattr(config, field)) not in lengths:
        counts = " or ".join(str(length) for length in sorted(set(lengths)))
        raise refusal(config, field, f"a tuple of {counts} number(s)")


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
    required = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
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
