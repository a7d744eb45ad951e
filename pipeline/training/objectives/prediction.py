"""A registered model's answer for one input, and the columns of a table of them."""

import dataclasses
import typing
from typing import Any, ClassVar, Literal, Self

ColumnKind = Literal["text", "number", "texts", "numbers", "integers", "numbers_by_name", "bytes"]
"""What a column of predictions holds."""

_KINDS: dict[Any, ColumnKind] = {
    str: "text",
    float: "number",
    list[str]: "texts",
    list[float]: "numbers",
    list[int]: "integers",
    dict[str, float]: "numbers_by_name",
    bytes: "bytes",
}


class Prediction:
    """A model's answer for one input. Each objective has its own dataclass.

    The first field is `source` and the last is `error`. The fields between them are the answer.
    Each has a type of `ColumnKind`, or is None if the input cannot be used.

    Attributes:
        headings: Column headings for people, where they differ from the field names.
        flat: The fields with several values that tables of single values show, too.
        source: The name of the input.
        error: Why the input cannot be used; None if it can.
    """

    headings: ClassVar[dict[str, str]] = {}
    flat: ClassVar[tuple[str, ...]] = ()
    source: str
    error: str | None

    @classmethod
    def unusable(cls, source: str, error: str) -> Self:
        """Return the prediction for an input that cannot be used."""
        names = [name for name, _ in cls.columns()]
        return cls(**{**dict.fromkeys(names), "source": source, "error": error})

    @classmethod
    def columns(cls) -> list[tuple[str, ColumnKind]]:
        """Return the names and kinds of the columns between `source` and `error`, in order."""
        hints = typing.get_type_hints(cls)
        found = []
        for each in dataclasses.fields(cls):  # type: ignore[arg-type]  # its subclasses are ones
            hint = hints[each.name]
            kind = next(one for one in (hint, *typing.get_args(hint)) if one in _KINDS)
            if each.name not in ("source", "error"):
                found.append((each.name, _KINDS[kind]))
        return found


def answer_of(prediction: Prediction) -> dict[str, Any]:
    """Return the fields of a prediction between `source` and `error` that have a value."""
    values = {name: getattr(prediction, name) for name, _ in prediction.columns()}
    return {name: value for name, value in values.items() if value is not None}
