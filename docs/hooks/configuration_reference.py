"""The reference of every configuration field, written from the code that reads the fields.

`pipeline.config.tree.Config` and the classes inside it give the paths, types, defaults and bounds;
the `Attributes:` sections of their docstrings give the texts.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import annotated_types
import griffe
from google_docstrings import split_names
from pydantic import BaseModel
from pydantic.fields import FieldInfo

WORDS = {int: "integer", float: "number", str: "text", bool: "true or false"}
HEADER = ("| field | takes | default | means |", "|---|---|---|---|")


@dataclasses.dataclass(frozen=True)
class FieldRow:
    """One field of one class of the configuration.

    Attributes:
        name: of the field, without the path of its section.
        takes: the type in words; empty for a section.
        bounds: the least and the greatest value, and other limits, in words; may be empty.
        default: as YAML writes it; None where the field must be given.
        text: what the field means; empty where the docstring of its class has no text for it.
        sections: the classes of which the field holds one.
    """

    name: str
    takes: str
    bounds: str
    default: str | None
    text: str
    sections: tuple[type, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """One class of the configuration, at the first path that leads to it.

    Attributes:
        path: dotted; `NAME` stands for a name that the user chooses. Empty for the root.
        cls: the class.
        kind: the value of the field `kind` that chooses this class; empty where nothing does.
        summary: the class's docstring up to its first section.
        fields: in the order of the class.
    """

    path: str
    cls: type
    kind: str
    summary: str
    fields: tuple[FieldRow, ...]

    @property
    def anchor(self) -> str:
        """Where a link to this section goes."""
        return "-".join(filter(None, (self.path.replace(".", "-") or "root", self.kind)))


def sections(root: type) -> list[Section]:
    """The class at the root and every class inside it, each once, from above.

    Args:
        root: a pydantic model or a dataclass.
    """
    found: list[Section] = []
    waiting, seen = [("", root)], {root}
    while waiting:
        path, cls = waiting.pop(0)
        section = Section(path, cls, _kind(cls), _summary(cls), tuple(_fields(cls)))
        found.append(section)
        inner = []
        for field in section.fields:
            name = f"{field.name}.NAME" if field.takes.startswith("mapping") else field.name
            new = [kind for kind in field.sections if kind not in seen]
            inner += [(f"{path}.{name}".lstrip("."), kind) for kind in new]
            seen.update(new)
        waiting = inner + waiting
    return found


def markdown(root: type) -> str:
    """The reference as Markdown: a heading for each section, and a table of its fields."""
    all_sections = sections(root)
    links = {s.cls: f"[`kind: {s.kind}`]" if s.kind else "[section]" for s in all_sections}
    links = {s.cls: f"{links[s.cls]}(#{s.anchor})" for s in all_sections}
    lines: list[str] = []
    for section in all_sections:
        title = f"`{section.path}`" if section.path else "The root"
        title += f" of kind `{section.kind}`" if section.kind else ""
        lines += [f"## {title} {{ #{section.anchor} }}", "", section.summary, "", *HEADER]
        for field in section.fields:
            inner = " or ".join(links[cls] for cls in field.sections)
            join = " " if field.takes.endswith(":") else " or "
            takes = join.join(filter(None, (field.takes, inner)))
            takes += f"; {field.bounds}" if field.bounds else ""
            default = "must be given" if field.default is None else field.default
            cells = (f"`{field.name}`", takes, default, field.text)
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _fields(cls: type) -> Iterator[FieldRow]:
    texts = _texts(cls)
    for name, info in _infos(cls).items():
        yield FieldRow(
            name=info.alias or name,
            takes=_words(info.annotation),
            bounds=", ".join(_bounds(info.metadata)),
            default=_default(info),
            text=texts.get(name, ""),
            sections=tuple(dict.fromkeys(_sections_in(info.annotation))),
        )


def _infos(cls: Any) -> dict[str, FieldInfo]:
    if issubclass(cls, BaseModel):
        return dict(cls.model_fields)
    hints = typing.get_type_hints(cls, include_extras=True)
    infos = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            info = FieldInfo.from_annotated_attribute(hints[field.name], field.default)
        else:
            info = FieldInfo.from_annotation(hints[field.name])
            if field.default_factory is not dataclasses.MISSING:
                info.default_factory = field.default_factory
        infos[field.name] = info
    return infos


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and (
        issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
    )


def _sections_in(annotation: Any) -> Iterator[type]:
    if _is_section(annotation):
        yield annotation
    elif typing.get_origin(annotation) is not typing.Literal:
        for argument in typing.get_args(annotation):
            yield from _sections_in(argument)


def _words(annotation: Any) -> str:
    """A type in words; empty for a section."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        limits = ", ".join(_bounds(arguments[1:]))
        return _words(arguments[0]) + (f" ({limits})" if limits else "")
    if origin in (typing.Union, types.UnionType):
        words = dict.fromkeys(_words(argument) for argument in arguments)
        return " or ".join(word for word in words if word)
    if origin is typing.Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in arguments)
    if origin is dict:
        return f"mapping of names to {_words(arguments[1]) or 'sections:'}"
    if origin is tuple:
        inner = dict.fromkeys(_words(argument) for argument in arguments if argument is not ...)
        count = "" if ... in arguments else f"{len(arguments)} × "
        return f"list of {count}{' or '.join(inner)}"
    if annotation in (None, type(None)):
        return "null"
    if _is_section(annotation):
        return ""
    return WORDS.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    for item in metadata:
        match item:
            case FieldInfo():
                yield from _bounds(item.metadata)
            case annotated_types.Ge(ge=bound):
                yield f"at least {bound}"
            case annotated_types.Gt(gt=bound):
                yield f"above {bound}"
            case annotated_types.Le(le=bound):
                yield f"at most {bound}"
            case annotated_types.Lt(lt=bound):
                yield f"below {bound}"
            case annotated_types.MinLen(min_length=bound):
                yield f"at least {bound} long"
            case annotated_types.MaxLen(max_length=bound):
                yield f"at most {bound} long"
            case _:
                if pattern := getattr(item, "pattern", None):
                    yield f"matches `{pattern}`"


def _default(info: FieldInfo) -> str | None:
    if info.is_required():
        return None
    value = info.get_default(call_default_factory=True, validated_data={})
    return "that of each field" if _is_section(type(value)) else f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple() | list():
            return f"[{', '.join(map(_yaml, value))}]"
        case str():
            return value or '""'
    return str(value)


def _parsed(cls: type) -> list[Any]:
    docstring = griffe.Docstring(split_names(inspect.getdoc(cls) or ""))
    return docstring.parse("google", warnings=False)


def _summary(cls: type) -> str:
    texts = [part.value for part in _parsed(cls) if part.kind is griffe.DocstringSectionKind.text]
    return str(texts[0]) if texts else ""


def _texts(cls: type) -> dict[str, str]:
    """The texts of a class's `Attributes:`, its bases' included."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for part in _parsed(base) if "__doc__" in vars(base) else ():
            if part.kind is griffe.DocstringSectionKind.attributes:
                texts |= {item.name: item.description.strip() for item in part.value}
    return texts


def _kind(cls: type) -> str:
    info = _infos(cls).get("kind")
    values = typing.get_args(info.annotation) if info is not None else ()
    return str(values[0]) if len(values) == 1 else ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
