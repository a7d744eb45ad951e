"""Addresses: local paths with any characters, and URLs.

In a local path `#`, `::`, `%` and brackets are ordinary characters.
"""

import os
import re
from pathlib import Path

_LOCAL_SCHEMES = ("file://", "local://")
_WEB = re.compile(r"https?://", re.IGNORECASE)


def local_path(source: str) -> str | None:
    """Return the path on this machine, or None for a URL elsewhere."""
    for scheme in _LOCAL_SCHEMES:
        if source.lower().startswith(scheme):
            return source[len(scheme) :]
    return None if "://" in source else source


def is_web(source: str) -> bool:
    """Return whether this is an HTTP address, which may have a query."""
    return _WEB.match(source) is not None


def absolute_path(path: str) -> str:
    """Make a local path absolute; `~` is the home folder, and `~name` an existing user's."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 - pathlib fails on a name that is no user's
    return str(Path(expanded).absolute())
