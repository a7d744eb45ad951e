"""Reads the YAML of configurations safely, with strict keys and the numbers of YAML 1.2."""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """A safe loader that reads `1e-3` as a number (YAML 1.2) and refuses duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is no text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """Return the value of one YAML document.

    Raises:
        yaml.YAMLError: The text is not YAML.
    """
    return yaml.load(text, Loader=_Loader)


def is_quoted(text: str) -> bool:
    """Return whether a YAML document is one scalar in quotation marks.

    Raises:
        yaml.YAMLError: The text is not YAML.
    """
    node = yaml.compose(text, Loader=_Loader)
    return isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')
