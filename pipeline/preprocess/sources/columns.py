"""Columns of listings: which ones a configuration needs, and what for."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.config.data import DataConfig
from pipeline.errors import UserError
from pipeline.media.format import MediaFormat
from pipeline.media.registered import modality, modality_of
from pipeline.preprocess.sources.typed import Role, is_binary, is_list, is_text, is_time


@dataclass(frozen=True)
class Column:
    """One column to read.

    Attributes:
        name: The name of the column in the listing.
        role: What its values are.
        use: The field that the values go to: a modality, `mask`, `target`, `key`, `split` or
            `group`.
        setting: The field of the configuration that names the column, for errors.
        separator: The separator of several `labels` in one text.
        required: Whether a row without a value is refused.
    """

    name: str
    role: Role
    use: str
    setting: str
    separator: str = ";"
    required: bool = True

    @property
    def is_inline(self) -> bool:
        """Whether the value itself goes into the sample, and not a file that it names."""
        return self.role not in ("path", "label")


def wanted_columns(data: DataConfig, source: str, field: str) -> list[Column]:
    """Return the columns that a configuration needs. At this point all media columns hold paths.

    Args:
        data: The section `data` of the configuration.
        source: The listing's path or URL, for errors.
        field: The field of the configuration that names the listing, for errors.

    Raises:
        UserError: No column is configured for a modality or for the target.
    """
    columns = data.columns
    wanted: list[Column] = []
    of_rows: list[Column] = []
    # A video brings its own sound.
    brought = {other for name in data.formats for other in modality(name).brings}
    for use, fmt in data.formats.items():
        source_kind = modality(use).source
        if source_kind == "row":
            of_rows += row_columns(fmt, f"data.{use}.")
            continue
        name = columns.of(use)
        if name is None:
            if use in brought:
                continue
            raise UserError(
                f"{field}={source}: data.columns.{use} is missing; name the column of the "
                f"listing that holds the {use}"
            )
        required = use not in data.allow_missing and use not in brought
        role: Role = "text" if source_kind == "text" else "path"
        wanted.append(Column(name, role, use, f"data.columns.{use}", required=required))
    wanted += of_rows
    wanted += _target_columns(data, source, field)
    for use in ("key", "split"):
        if getattr(columns, use) is not None:
            wanted.append(Column(getattr(columns, use), "label", use, f"data.columns.{use}"))
    if data.group is not None:
        wanted.append(Column(data.group, "label", "group", "data.group"))
    return wanted


def row_columns(fmt: MediaFormat, section: str = "") -> list[Column]:
    """Return the columns that make up a row, for a format whose samples are rows.

    Args:
        fmt: The format.
        section: The section of the configuration with a dot at its end, for errors.
    """
    return [
        Column(column.name, column.role, fmt.modality, section + column.field, required=False)
        for column in modality_of(fmt).columns(fmt)
    ]


def _target_columns(data: DataConfig, source: str, field: str) -> list[Column]:
    target = data.target
    if target.kind == "none":
        return []
    if target.columns:
        return [Column(name, "number", "target", "data.target.columns") for name in target.columns]
    if target.column is None:
        raise UserError(
            f"{field}={source}: data.target.column is missing; name the column of the listing that "
            "holds the target, or give data.target.kind=none"
        )
    roles: dict[str, Role] = {
        "class": "label",
        "multi_label": "labels",
        "regression": "numbers",
        "mask": "path",
        "tokens": "tokens",
    }
    use = "mask" if target.kind == "mask" else "target"
    return [Column(target.column, roles[target.kind], use, "data.target.column", target.separator)]


def typed_role(column: Column, kind: pa.DataType) -> Role:
    """Return the role of a column once its type is known.

    A `path` column of binary values holds the files' bytes, and a `tokens` column of text holds
    text.

    Raises:
        ValueError: The type does not fit the role; the text says which types do.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    role = column.role
    if role == "path" and is_binary(kind):
        return "bytes"
    if role == "tokens" and is_text(kind):
        return "text"
    allowed, needed = _ALLOWED[role]
    if not (pa.types.is_null(kind) or allowed(kind)):
        raise ValueError(f"holds {kind}; {needed} is needed")
    return role


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    whole = types.is_integer(kind) or types.is_boolean(kind)
    return whole or types.is_floating(kind) or types.is_decimal(kind)


def _has_name(kind: pa.DataType) -> bool:
    return is_text(kind) or _is_number(kind) or is_time(kind)


def _list_of(check: Callable[[pa.DataType], bool], kind: pa.DataType) -> bool:
    return is_list(kind) and check(kind.value_type)


_ALLOWED: dict[Role, tuple[Callable[[pa.DataType], bool], str]] = {
    "path": (is_text, "text (paths) or binary (bytes of files)"),
    "bytes": (is_binary, "binary"),
    "text": (is_text, "text"),
    "label": (_has_name, "text, numbers or dates"),
    "category": (_has_name, "text, numbers or dates"),
    "labels": (lambda kind: is_text(kind) or _list_of(is_text, kind), "lists of text, or text"),
    "number": (_has_name, "numbers"),
    "numbers": (
        lambda kind: _has_name(kind) or _list_of(_is_number, kind),
        "numbers or lists of numbers",
    ),
    "tokens": (lambda kind: _list_of(pa.types.is_integer, kind), "lists of integers, or text"),
}
