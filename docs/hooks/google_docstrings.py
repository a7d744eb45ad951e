"""Docstrings as this project writes them, in the form that griffe's Google parser reads."""

import re
from typing import Any

import griffe

ITEM = re.compile(r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+): ")


def split_names(docstring: str) -> str:
    """`a, b: text` of a section becomes `a: text` and `b: text`.

    Args:
        docstring: cleaned, so that the items of a section are indented by 4 spaces.
    """
    lines, result = docstring.split("\n"), []
    while lines:
        item = [lines.pop(0)]
        match = ITEM.match(item[0])
        if match is None or len(match["indent"]) != 4:
            result += item
            continue
        while lines and lines[0].startswith(" " * 5):
            item.append(lines.pop(0))
        text = item[0][match.end() :]
        for name in match["names"].split(", "):
            result += [f"{match['indent']}{name}: {text}", *item[1:]]
    return "\n".join(result)


class SplitNames(griffe.Extension):
    """Applies `split_names` to the docstring of every object that griffe reads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one object's docstring in place."""
        if obj.docstring is not None:
            obj.docstring.value = split_names(obj.docstring.value)
