"""The Perceiver (Jaegle et al. 2021, arXiv 2103.03206) and its descendants.

Each name is imported when it is first used, so that the configuration can be read without torch.
`__init__.pyi` lists the names and their modules.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

_MODULE_OF = {
    alias.name: statement.module
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(statement, ast.ImportFrom) and statement.module
    for alias in statement.names
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
