"""The conditions of a search space: which fields exist beside which values of others."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config.space import SpaceConfig

Space = Mapping[str, SpaceConfig]
Settings = dict[str, Any]
"""The value of a trial for each dotted field that exists in it."""

_MAX_CONTEXTS = 64


def check_conditions(space: Space) -> None:
    """Check that each condition names values that other fields can have, without a circle.

    Raises:
        ValueError: A condition can never hold.
    """
    for path, values in space.items():
        for other, wanted in values.when.items():
            where = f"space.{path}.when.{other}"
            if other not in space:
                raise ValueError(f"{where}: no searched field; name a field of space")
            if space[other].kind in ("uniform", "loguniform"):
                raise ValueError(
                    f"{where}: {other} is {space[other].kind}, which has no single values; give it "
                    "choice, integer, log_integer or quniform"
                )
            for value in wanted:
                if not space[other].holds(value):
                    raise ValueError(f"{where}: {other} is never {value!r}")
    in_order(space)


def in_order(space: Space) -> list[str]:
    """Return the fields by name, but each after the fields of its condition.

    Raises:
        ValueError: Conditions name each other in a circle.
    """
    ordered: list[str] = []
    left = sorted(space)
    while left:
        free = [field for field in left if not set(space[field].when) & set(left)]
        if not free:
            raise ValueError(f"space: the conditions of {', '.join(left)} are a circle")
        # Only one, so that without conditions the order is that of the names.
        ordered.append(free[0])
        left.remove(free[0])
    return ordered


def exists(space: Space, field: str, settings: Settings) -> bool:
    """Return whether a field exists beside these values of the fields before it."""
    return all(
        other in settings and any(_same(settings[other], value) for value in wanted)
        for other, wanted in space[field].when.items()
    )


def existing(space: Space, values: Settings) -> Settings:
    """Return the values of the fields that exist beside each other."""
    settings: Settings = {}
    for field in in_order(space):
        if field in values and exists(space, field, settings):
            settings[field] = values[field]
    return settings


def contexts(space: Space, field: str) -> Iterator[Settings]:
    """Yield values of other fields with which a field exists, at most 64 times."""
    for chosen in itertools.islice(_contexts(space, field), _MAX_CONTEXTS):
        yield {other: value for other, value in chosen.items() if other != field}


def _contexts(space: Space, field: str) -> Iterator[Settings]:
    conditions = space[field].when
    for values in itertools.product(*conditions.values()):
        chosen = dict(zip(conditions, values, strict=True))
        above = [list(_contexts(space, other)) for other in conditions]
        for parts in itertools.product(*above):
            merged = dict(chosen)
            fits = True
            for part in parts:
                fits &= all(_same(merged.get(key, each), each) for key, each in part.items())
                merged |= part
            if fits:
                yield merged


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are the same. A YAML `true` is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
